"""Tests of what users meet: commands from end to end."""
