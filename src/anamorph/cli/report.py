"""`anamorph report RUN`: make the report again."""

from anamorph.cli.console import stdout
from anamorph.cli.options import RunFolder
from anamorph.report import render
from anamorph.runs.folder import load_run


def report(run: RunFolder) -> None:
    """Make report.html and figures/ again from the numbers in a run folder."""
    stdout().print(f"Report: {render(load_run(run).path)}", soft_wrap=True)
