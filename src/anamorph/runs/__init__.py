"""The run folder: what lies in it, and who may write to it."""
