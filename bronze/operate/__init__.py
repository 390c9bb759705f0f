"""The service: `bronze serve` and the commands that act on it."""
