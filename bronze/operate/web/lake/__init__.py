"""What the dashboard reads from the lake itself."""
