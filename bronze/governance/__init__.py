"""What is recorded about the tables, and who did what to them."""
