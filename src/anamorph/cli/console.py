"""What the command line prints on."""

import json
import os
from typing import Any

from rich.console import Console

PIPED_WIDTH = 150  # columns where nobody says how wide the output is shown


def stdout() -> Console:
    """The terminal as it is, or a width at which tables stay readable in a file."""
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPED_WIDTH
    return console


def stderr() -> Console:
    """Where notices go, so that programs can read the rest."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def progress_console(as_json: bool) -> Console:
    """Where progress is shown: on stderr where stdout has JSON and nothing else."""
    return stderr() if as_json else stdout()


def print_json(value: Any) -> None:
    """Print JSON on stdout, as one line."""
    print(json.dumps(value, allow_nan=False))
