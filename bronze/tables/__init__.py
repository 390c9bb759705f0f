"""A table of the source and its Bronze table: names, columns, what is known of it."""
