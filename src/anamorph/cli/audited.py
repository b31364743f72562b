"""An audit on the command line: its progress, and what is said at its end."""

from collections.abc import Callable

from anamorph.cli.console import print_json, progress_console, stdout
from anamorph.cli.progress import shown
from anamorph.cli.tables import print_run
from anamorph.report.opened import load_run
from anamorph.runs.folder import Run
from anamorph.store import Address, address_of


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
