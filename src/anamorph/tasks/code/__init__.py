"""The code task."""
