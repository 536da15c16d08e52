"""What one region's thread knows, and what waits in it."""
