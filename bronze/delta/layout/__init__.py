"""Which rows lie together in which files: optimize, clustering, vacuum."""
