"""The text task: texts that somebody has."""
