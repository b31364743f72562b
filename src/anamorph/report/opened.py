"""A run folder as its users have it: `am.load_run`, and what every study gives back."""

from functools import cached_property
from pathlib import Path

from anamorph.analysis.findings import Findings
from anamorph.runs import folder
from anamorph.runs.folder import Run


class OpenedRun(Run):
    """A run folder, to be asked. Tables are polars frames, and are read once.

    Args:
        path: where it lies. `load_run` opens it.
        spec: the content of `spec.json`.
    """

    @cached_property
    def findings(self) -> Findings:
        """What follows from its tables, for the words and charts of a report."""
        return Findings(self.path, self.spec)


def load_run(path: Path | str) -> OpenedRun:
    """Open a run folder to look at.

    Args:
        path: what `--out` named.

    Raises:
        AnamorphError: if it holds no run, or a damaged one.
    """
    run = folder.load_run(path)
    return OpenedRun(run.path, run.spec)
