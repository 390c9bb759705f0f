"""Rows of Bronze tables: canonical encoding, hashes, fingerprints and metadata columns."""
