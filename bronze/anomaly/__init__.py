"""Anomalies: rows and runs that differ from the others of their table."""
