"""What PostgreSQL says of its tables, columns, types and constraints."""
