"""The doctor: checks of the config, both ends and the machine that change nothing."""
