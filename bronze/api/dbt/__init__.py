"""What dbt reads of a lake, and what bronze reads of dbt: sources, and rules as data tests."""
