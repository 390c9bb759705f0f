"""Templates of deployments, and what fills them from a config."""
