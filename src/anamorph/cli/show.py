"""`anamorph show RUN`: the numbers in the terminal, or for programs and papers."""

from typing import Annotated, Any

import typer

from anamorph.analysis.findings import Findings
from anamorph.analysis.formats import csv
from anamorph.analysis.reported import reported
from anamorph.analysis.tables import tidy
from anamorph.cli.console import print_json, stdout
from anamorph.cli.latex import latex
from anamorph.cli.layout import say
from anamorph.cli.markdown import markdown
from anamorph.cli.options import Plugins, RunFolder
from anamorph.cli.tables import print_run
from anamorph.errors import AnamorphError, RunFolderError
from anamorph.report.opened import load_run
from anamorph.runs.folder import Run
from anamorph.runs.underway import underway


def show(
    run: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="With --json: every number, in place of a summary.")
    ] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print every number of whole splits, one a row.")
    ] = False,
    as_latex: Annotated[
        bool, typer.Option("--latex", help="Print a table of shares and verdicts for a paper.")
    ] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown for documents.")
    ] = False,
    plugins: Plugins = None,
) -> None:
    """Show a run's accuracies, verdicts and claims; of an unfinished one, how far it is."""
    if as_json + as_csv + as_latex + as_markdown > 1:
        raise AnamorphError("Give one of --json, --csv, --latex and --markdown.")
    if full and not as_json:
        raise AnamorphError("--full is for --json: give both, or --csv for a table.")
    found = load_run(run)
    going = underway(found)
    if going and (full or as_csv or as_latex or as_markdown):
        raise RunFolderError(f"{found.path} has no tables yet. {' '.join(going.sentences)}")
    if full:
        print_json(_everything(found))
    elif as_json:
        print_json(found.summary())
    elif as_csv:
        print(csv(tidy(found)), end="")
    elif as_latex:
        print(latex(found), end="")
    elif as_markdown:
        print(markdown(found))
    elif going:
        console = stdout()
        for sentence in (f"Run: {found.path}", *going.sentences):
            say(console, sentence)
    else:
        print_run(found, stdout())


def _everything(found: Run) -> dict[str, Any]:
    """Claims, checks, and the rows of all tables."""
    tables = {"results": found.results, "gaps": found.gaps, "contrasts": found.contrasts}
    tables["reported"] = reported(Findings(found.path, found.spec))
    rows = {name: table.to_dicts() for name, table in tables.items()}
    return {"claims": found.claims, "checks": found.checks, **rows}
