"""Connections to PostgreSQL: opened, verified by TLS, and pinned to the same settings."""
