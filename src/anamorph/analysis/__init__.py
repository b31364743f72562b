"""A run, read as tables: words, verdicts, heads, and what the report draws."""
