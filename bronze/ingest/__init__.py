"""Batch loads: what `bronze run` does."""
