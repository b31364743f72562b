"""`anamorph show RUN`: the numbers in the terminal."""

import json
from typing import Annotated

import typer

from anamorph.cli.console import stdout
from anamorph.cli.markdown import markdown
from anamorph.cli.options import RunFolder
from anamorph.cli.tables import print_run
from anamorph.runs import load_run


def show(
    run: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown for documents.")
    ] = False,
) -> None:
    """Show a run's accuracies, verdicts and claims."""
    found = load_run(run)
    if as_json:
        tables = {"results": found.results.to_dicts(), "gaps": found.gaps.to_dicts()}
        print(json.dumps({"claims": found.claims, "checks": found.checks, **tables}))
    elif as_markdown:
        print(markdown(found))
    else:
        print_run(found, stdout())
