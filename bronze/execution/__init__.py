"""Executors of tasks, and the memory that tasks may take."""
