"""The files people see."""
