"""Rows of both sides: their digests, the sums of these, and how rows differ."""
