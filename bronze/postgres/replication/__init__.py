"""Changes read from logical replication."""
