"""The proof that Bronze equals the source, the check of tables at rest, and the repair."""
