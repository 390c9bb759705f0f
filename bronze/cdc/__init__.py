"""Change data capture: what `bronze stream` does."""
