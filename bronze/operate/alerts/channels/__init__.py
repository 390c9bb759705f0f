"""Channels: one module for each way to tell people; each has one function, ``send``."""
