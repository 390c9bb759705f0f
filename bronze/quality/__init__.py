"""Quality: the rules of tables, the scores of rows, and the figures of runs."""
