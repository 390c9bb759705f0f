"""bronze.toml: its sections, read and checked."""
