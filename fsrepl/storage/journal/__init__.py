"""The journal: an SQLite index of the trees, rebuilt from them when it is missing."""
