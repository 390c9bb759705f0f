"""PostgreSQL: connect, catalog, types, plan, read."""
