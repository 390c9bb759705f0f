"""How changed rows become data files of a table."""
