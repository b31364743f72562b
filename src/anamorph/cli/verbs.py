"""The verbs of the command line, all of them."""

from typing import Annotated

import typer

from anamorph.cli.along import along
from anamorph.cli.audit import audit
from anamorph.cli.compare import compare
from anamorph.cli.data import data
from anamorph.cli.export import export
from anamorph.cli.list import list_
from anamorph.cli.report import report
from anamorph.cli.run import run
from anamorph.cli.show import show
from anamorph.cli.sites import sites
from anamorph.cli.train import train
from anamorph.cli.worst import worst
from anamorph.version import version

app = typer.Typer(
    help="Does a simplified view of a Transformer still hold away from the data it was fitted on?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for verb in (run, train, audit, compare, along, report, show, worst, data, sites, export):
    app.command()(verb)
app.command(name="list")(list_)


def _version(asked: bool) -> None:
    if asked:
        print(version())
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    pass
