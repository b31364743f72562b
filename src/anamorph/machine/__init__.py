"""What anamorph takes of the machine and of the user's process, and leaves as it was."""
