"""Frozen values that several stages share, or that travel to workers and back."""
