"""The source's catalog: relations, types, constraints, definitions, and the column contract."""
