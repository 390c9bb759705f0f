"""PostgreSQL: connections, catalog, copies of tables, logical replication."""

import os

# connectorx's connection pool logs each failed attempt to stderr; the level is read at its import.
os.environ.setdefault("RUST_LOG", "off")
