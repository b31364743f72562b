"""The command line: one file a verb, no logic."""

import sys
import warnings

import typer
from rich.console import Console

from anamorph.cli.audit import audit
from anamorph.cli.data import data
from anamorph.cli.list import list_
from anamorph.cli.report import report
from anamorph.cli.run import run
from anamorph.cli.show import show
from anamorph.cli.sites import sites
from anamorph.cli.train import train
from anamorph.errors import AnamorphError

app = typer.Typer(
    help="Does a simplified view of a Transformer still hold away from the data it was fitted on?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for verb in (run, train, audit, report, show, data, sites):
    app.command()(verb)
app.command(name="list")(list_)


def main() -> None:
    """Run the command line; bad input ends in one paragraph and exit code 2."""
    warnings.showwarning = _warn
    try:
        app()
    except AnamorphError as error:
        Console(stderr=True).print(f"[bold red]Error:[/] {_plain(error)}", highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print("Stopped. The same command goes on from here.")
        sys.exit(130)


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    Console(stderr=True).print(f"[yellow]Warning:[/] {_plain(message)}", highlight=False)


def _plain(error: object) -> str:
    return str(error).replace("[", r"\[")
