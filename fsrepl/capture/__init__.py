"""Capture: a changed file becomes a version."""
