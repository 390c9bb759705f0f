"""The sections of bronze.toml, each as a frozen value."""
