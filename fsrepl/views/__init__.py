"""Views: the files that people see."""
