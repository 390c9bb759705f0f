"""Connections to PostgreSQL: how they are made, verified and pinned."""
