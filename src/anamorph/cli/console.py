"""What the command line prints on, and what it says at the end of an audit."""

import os
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from anamorph.cli.progress import shown
from anamorph.cli.tables import print_run
from anamorph.runs.folder import Run, load_run

PIPED_WIDTH = 150  # columns where nobody says how wide the output is shown


def stdout() -> Console:
    """The terminal as it is, or a width at which tables stay readable in a file."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPED_WIDTH
    return console


def stderr() -> Console:
    """Where notices go, so that programs can read the rest."""
    return Console(stderr=True, highlight=False, markup=False)


def audit_into(folder: Path | str, work: Callable[..., Run]) -> None:
    """Do an audit, or what is left of it, by `work(watch=…)`; print numbers and where they are."""
    console = stdout()
    before = (Path(folder) / "spec.json").exists() and load_run(folder).complete
    with shown(console) as watch:
        path = work(watch=watch).path
    run = load_run(path)
    print_run(run, console)
    if before:
        console.print("This run was complete already; nothing was done again.")
    console.print(f"Report: {run.report}", soft_wrap=True)
