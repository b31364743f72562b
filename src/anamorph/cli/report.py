"""`anamorph report RUN`: make the report again."""

import warnings

from anamorph.cli.console import stdout
from anamorph.cli.options import Figures, NoFigures, Plugins, RunFolder, chosen_figures
from anamorph.report import render
from anamorph.runs.folder import load_run


def report(
    run: RunFolder,
    figures: Figures = None,
    no_figures: NoFigures = False,
    plugins: Plugins = None,
) -> None:
    """Make report.html and figures/ again from the numbers in a run folder."""
    names = chosen_figures(figures, no_figures)
    found = load_run(run)
    if not found.claims:
        warnings.warn(
            f"{run} holds no claims, so that the report has none. The command that made the run "
            "measures them again.",
            stacklevel=2,
        )
    stdout().print(f"Report: {render(found.path, names)}", soft_wrap=True)
