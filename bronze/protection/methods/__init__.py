"""Methods of protection: encryption, FF1 (which preserves a format), and tokens made with it."""
