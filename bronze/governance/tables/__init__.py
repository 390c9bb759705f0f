"""The schema of each governance table, a module for each."""
