"""Records and views are made true again."""
