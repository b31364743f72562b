"""The claims of the paper, as a study measures them, and what was chosen where it is silent."""
