"""A run folder as its users have it: `am.load_run`, and what every study gives back."""

from functools import cached_property
from pathlib import Path

from anamorph.analysis.findings import Findings
from anamorph.report.card import card
from anamorph.report.plot import Plots
from anamorph.runs import folder
from anamorph.runs.folder import Run
from anamorph.showing import Card, Showing


class OpenedRun(Showing, Run):
    """A run folder, to be asked. Its attributes are those of `Run`, and tables are read once."""

    @cached_property
    def findings(self) -> Findings:
        """What follows from its tables, for the words and charts of a report."""
        return Findings(self.path, self.spec)

    @cached_property
    def plot(self) -> Plots:
        """The charts of its report, such as `run.plot.faithfulness(metric="output_jsd")`."""
        return Plots(self.findings)

    def _card(self) -> Card:
        return card(self)


def load_run(path: Path | str) -> OpenedRun:
    """Open a run folder to look at.

    Args:
        path: what `--out` named.

    Raises:
        AnamorphError: if it holds no run, or a damaged one.
    """
    run = folder.load_run(path)
    return OpenedRun(run.path, run.spec)
