"""What is remembered beside the data."""
