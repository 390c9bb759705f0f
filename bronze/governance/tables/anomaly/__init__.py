"""The governance tables of anomalies: models, profiles of runs, and the anomalies themselves."""
