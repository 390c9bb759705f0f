"""Reads tables from one snapshot, split by split, and hashes their rows in PostgreSQL."""
