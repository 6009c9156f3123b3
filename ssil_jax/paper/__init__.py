"""Knows what was published, and which runs would reproduce it."""
