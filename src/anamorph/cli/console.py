"""What the command line prints on, and what it says at the end of an audit."""

import json
import os
from collections.abc import Callable
from typing import Any

from rich.console import Console

from anamorph.cli.progress import shown
from anamorph.cli.tables import print_run
from anamorph.report.opened import load_run
from anamorph.runs.folder import Run
from anamorph.store import Address, address_of

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


def audit_into(folder: Address | str, work: Callable[..., Run], as_json: bool = False) -> None:
    """Do an audit, or what is left of it, by `work(watch=…)`; print numbers and where they are.

    Args:
        folder: the run folder.
        work: does it, and gives the run.
        as_json: print a summary as JSON in their place; see `OpenedRun.summary`.
    """
    before = (address_of(folder) / "spec.json").exists() and load_run(folder).complete
    with shown(progress_console(as_json)) as watch:
        path = work(watch=watch).path
    run = load_run(path)
    if as_json:
        print_json(run.summary())
        return
    console = stdout()
    print_run(run, console)
    if before:
        console.print("This run was complete already; nothing was done again.")
    console.print(f"Report: {run.report}", soft_wrap=True, markup=False)
