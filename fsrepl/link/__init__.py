"""A region on another machine: the connection to its agent, and what crosses it."""
