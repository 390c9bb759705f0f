"""The commands about copies of the lake."""
