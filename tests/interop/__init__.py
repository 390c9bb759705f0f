"""Tables read back by independent engines."""
