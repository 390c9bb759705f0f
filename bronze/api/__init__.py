"""The commands as Python calls."""
