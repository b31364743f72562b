"""`anamorph audit RUN`: other simplifications on the models of a run."""

from pathlib import Path
from typing import Annotated

import typer

from anamorph.cli.console import stdout
from anamorph.cli.options import RunFolder
from anamorph.cli.progress import shown
from anamorph.cli.tables import print_run
from anamorph.study import audit_study


def audit(
    run: RunFolder,
    simplify: Annotated[
        list[str],
        typer.Option(help="A spec such as 'svd(rank=[1,2,4])@1.*.{query,key}'; repeatable."),
    ],
    out: Annotated[Path, typer.Option(help="A new run folder for the results.")],
) -> None:
    """Audit the models of a run with other simplifications, into a new run folder."""
    console = stdout()
    with shown(console) as watch:
        result = audit_study(run, simplify, out, watch=watch)
    print_run(result, console)
    console.print(f"Report: {result.report}", soft_wrap=True)
