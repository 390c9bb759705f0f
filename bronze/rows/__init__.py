"""Rows as Bronze has them: their canonical encoding, hashes, and the metadata columns."""
