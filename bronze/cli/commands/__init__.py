"""The commands: their arguments and options, one module per group."""
