"""`anamorph show RUN`: the numbers in the terminal."""

import json
from typing import Annotated

import typer

from anamorph.analysis.findings import Findings
from anamorph.analysis.reported import reported
from anamorph.cli.console import stdout
from anamorph.cli.markdown import markdown
from anamorph.cli.options import Plugins, RunFolder
from anamorph.cli.tables import print_run
from anamorph.runs.folder import load_run, read_json


def show(
    run: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown for documents.")
    ] = False,
    plugins: Plugins = None,
) -> None:
    """Show a run's accuracies, verdicts and claims."""
    found = load_run(run)
    read_json(found.path / "claims.json", list)  # a run that did not come to its end has none
    if as_json:
        tables = {"results": found.results, "gaps": found.gaps, "contrasts": found.contrasts}
        tables["reported"] = reported(Findings(found.path, found.spec))
        rows = {name: table.to_dicts() for name, table in tables.items()}
        print(json.dumps({"claims": found.claims, "checks": found.checks, **rows}))
    elif as_markdown:
        print(markdown(found))
    else:
        print_run(found, stdout())
