"""A change becomes a version."""
