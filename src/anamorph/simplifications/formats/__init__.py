"""Sparse coders as people have them on disk: a file for each format."""
