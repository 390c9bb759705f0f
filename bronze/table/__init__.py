"""Delta tables: schema, files, commit."""
