"""Logical replication: slots, publications, and the changes that a stream receives."""
