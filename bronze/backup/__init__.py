"""Backup: copies of the lake as of one moment, in another store."""
