"""Verification: Bronze against the source, Bronze at rest, and the repair of what differs."""
