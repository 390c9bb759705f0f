"""Rows become Bronze rows: identities, times and hashes are added."""
