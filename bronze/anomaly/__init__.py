"""Anomalies: rows and runs that are unlike the others of their table."""
