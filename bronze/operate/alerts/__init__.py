"""Alerts: what is wrong, who is told, and until when."""
