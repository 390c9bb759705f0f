"""Records about the tables: the audit log, lineage, and the schemas of the governance tables."""
