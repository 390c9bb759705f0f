"""The demo: an embedded PostgreSQL server with an inventory database to try bronze on."""
