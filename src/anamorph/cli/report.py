"""`anamorph report RUN`: make the report again."""

from rich.console import Console

from anamorph.cli.options import RunFolder
from anamorph.report import render
from anamorph.runs import load_run


def report(run: RunFolder) -> None:
    """Make report.html and figures/ again from the numbers in a run folder."""
    Console().print(f"Report: {render(load_run(run).path)}", soft_wrap=True)
