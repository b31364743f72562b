"""What is said at the end of an audit."""

from pathlib import Path

from rich.console import Console

from anamorph.cli.tables import print_run
from anamorph.runs.folder import Run, load_run


def complete(folder: Path | str) -> bool:
    """Whether there is a run in which nothing is left to do."""
    return (Path(folder) / "spec.json").exists() and load_run(folder).complete


def print_outcome(run: Run, console: Console, *, before: bool) -> None:
    """The numbers of a run and where its report is.

    Args:
        run: just made, or gone on with.
        console: to print on.
        before: whether it was complete before.
    """
    print_run(load_run(run.path), console)
    if before:
        console.print("This run was complete already; nothing was done again.")
    console.print(f"Report: {run.report}", soft_wrap=True)
