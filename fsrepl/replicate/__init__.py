"""A version becomes a replica."""
