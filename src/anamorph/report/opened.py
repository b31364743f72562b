"""A run folder as its users have it: `am.load_run`, and what every study gives back."""

from functools import cached_property
from pathlib import Path

import polars as pl

from anamorph.analysis.findings import Findings
from anamorph.analysis.worst import METRIC, By, Chosen, chosen, positions, usual, worst
from anamorph.runs import folder
from anamorph.runs.folder import Run


class OpenedRun(Run):
    """A run folder, to be asked. Its attributes are those of `Run`, and tables are read once."""

    @cached_property
    def findings(self) -> Findings:
        """What follows from its tables, for the words and charts of a report."""
        return Findings(self.path, self.spec)

    def worst(
        self,
        proxy: str | None = None,
        split: str | None = None,
        n: int = 10,
        metric: str = METRIC,
        seed: int | None = None,
        by: By = "mean",
    ) -> pl.DataFrame:
        """The sequences on which a proxy and its model part most, the worst first.

        Args:
            proxy: its spec string; the most telling one by default.
            split: the name of the split; by default the one with the largest gap.
            n: how many sequences at most.
            metric: by which they part.
            seed: of the model; the first by default, of which the run has texts.
            by: the `mean` over the scored positions of a sequence, or their `sum`.

        Returns:
            a row a sequence: see `anamorph.analysis.worst.worst`.

        Raises:
            AnamorphError: if there is no such proxy, split, metric or seed, or the run does not say
                which sequences it scored.
        """
        return worst(self, self._cell(proxy, split, seed), n, metric, by)

    def positions(
        self, sequence: int, proxy: str | None = None, split: str | None = None
    ) -> pl.DataFrame:
        """What model and proxy predict at every position of a sequence with a text in `worst`.

        Args:
            sequence: the number that `worst` gives it.
            proxy: as for `worst`.
            split: as for `worst`.

        Returns:
            a row a token: see `anamorph.analysis.worst.positions`.

        Raises:
            AnamorphError: if the run has no such text; says which it has, and how to get others.
        """
        return positions(self, self._cell(proxy, split, None), sequence)

    def _cell(self, proxy: str | None, split: str | None, seed: int | None) -> Chosen:
        if proxy is None or split is None:
            name, place = usual(self.findings, proxy)
            proxy, split = proxy or name, split or place
        return chosen(self, proxy, split, seed)


def load_run(path: Path | str) -> OpenedRun:
    """Open a run folder to look at.

    Args:
        path: what `--out` named.

    Raises:
        AnamorphError: if it holds no run, or a damaged one.
    """
    run = folder.load_run(path)
    return OpenedRun(run.path, run.spec)
