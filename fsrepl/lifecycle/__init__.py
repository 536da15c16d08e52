"""Versions expire, move and go as the rules of their bucket say."""
