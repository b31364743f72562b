"""The main job: what is to be done, and doing it, from nothing to a report."""
