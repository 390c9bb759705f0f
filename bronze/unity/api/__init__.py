"""The API of Unity Catalog's servers: REST, SQL on a warehouse, and what they refuse."""
