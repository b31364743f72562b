"""`python -m anamorph`: the command line."""

from anamorph.cli import main

main()
