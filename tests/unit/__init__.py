"""Tests without PostgreSQL: in memory, and of Delta tables in a folder."""
