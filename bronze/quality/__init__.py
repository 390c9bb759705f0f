"""Rules: what rows have to keep, how they are checked, and the figures of it."""
