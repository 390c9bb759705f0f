"""Writes changed rows into the data files of a table: merge, insert, history, lookup."""
