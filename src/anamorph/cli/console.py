"""Where the command line prints."""

import os

from rich.console import Console

PIPED_WIDTH = 150  # columns where nobody says how wide the output is shown


def stdout() -> Console:
    """The terminal as it is, or a width at which tables stay readable in a file."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPED_WIDTH
    return console
