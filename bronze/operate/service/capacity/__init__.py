"""How much may run at once: the windows of the config, and what presses."""
