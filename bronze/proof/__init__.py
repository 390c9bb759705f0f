"""The proof that Bronze equals the source, that what is at rest is whole, and the repair."""
