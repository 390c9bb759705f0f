"""The schemas of the governance tables, one module each."""
