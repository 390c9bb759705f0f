"""What is read from a Delta log."""
