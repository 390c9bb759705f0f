"""PostgreSQL: connections, catalog, copies of tables, logical replication."""

import os

# connectorx's connection pool writes each failed attempt to stderr, unless it is told not to
# before it is imported.
os.environ.setdefault("RUST_LOG", "off")
