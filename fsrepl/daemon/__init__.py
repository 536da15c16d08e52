"""The process: its loop, its socket, what it tells others."""
