"""Rows read from tables, as of one snapshot, and their hashes as PostgreSQL computes them."""
