"""The service itself: its loop, and what it runs."""
