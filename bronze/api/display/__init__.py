"""What a command shows while it works: bars on a terminal, lines of the log elsewhere."""
