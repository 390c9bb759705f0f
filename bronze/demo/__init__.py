"""A PostgreSQL server and an inventory database to try bronze on, with nothing else installed."""
