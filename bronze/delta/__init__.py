"""Delta tables: log, commits, schema, data files, statistics."""
