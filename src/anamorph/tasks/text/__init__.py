"""The text task: a user's own texts."""
