"""A run folder as its users have it: `am.load_run`, and what every study gives back."""

from functools import cached_property
from typing import Any

import polars as pl

from anamorph.analysis.findings import Findings
from anamorph.analysis.outline import outline
from anamorph.analysis.tables import table, verdicts
from anamorph.analysis.worst import METRIC, By, Chosen, chosen, positions, usual, worst
from anamorph.faithfulness.metrics import JUDGED
from anamorph.report.card import card
from anamorph.report.plot import Plots
from anamorph.runs import folder
from anamorph.runs.folder import Run
from anamorph.runs.underway import underway
from anamorph.showing import Card, Showing
from anamorph.store import Address


class OpenedRun(Showing, Run):
    """A run folder, to be asked. Tables are polars frames, and are read once.

    Args:
        path: where it lies. `load_run` opens it.
        spec: the content of `spec.json`.
    """

    @cached_property
    def findings(self) -> Findings:
        """What follows from its tables, for the words and charts of a report."""
        return Findings(self.path, self.spec)

    def table(
        self,
        metric: str = JUDGED,
        *,
        facet: str | None = None,
        seed: int | None = None,
        long: bool = False,
        controls: bool = False,
    ) -> pl.DataFrame:
        """A metric of every proxy on every split.

        Args:
            metric: which; the share of same predictions by default.
            facet: break it down by the levels of this one, which are rows.
            seed: of the model; None stands for all models together.
            long: a row a number with its interval and its gap, in place of a column a split.
            controls: with the controls.

        Returns:
            see `anamorph.analysis.tables.table`.

        Raises:
            AnamorphError: if the run has no such metric, facet or seed; it lists those it has.
        """
        return table(self, metric, facet=facet, seed=seed, long=long, controls=controls)

    def verdicts(self, *, seed: int | None = None, controls: bool = False) -> pl.DataFrame:
        """The verdict on every view on every split but the reference.

        Args:
            seed: of the model; None stands for all models together.
            controls: with the controls.

        Returns:
            a row a proxy and split; see `anamorph.analysis.tables.verdicts`.

        Raises:
            AnamorphError: if the run has no such seed.
        """
        return verdicts(self, seed=seed, controls=controls)

    def summary(self) -> dict[str, Any]:
        """What was found, in a few kilobytes, as `anamorph show --json` prints it.

        Returns:
            see `anamorph.analysis.outline.outline`; of an unfinished run how far it is, see
            `anamorph.runs.underway.Underway`.
        """
        going = underway(self)
        return outline(self.findings) if going is None else going.as_dict()

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

    @cached_property
    def plot(self) -> Plots:
        """The charts of its report, such as `run.plot.faithfulness(metric="output_jsd")`."""
        return Plots(self.findings)

    def _card(self) -> Card:
        return card(self)


def load_run(path: Address | str) -> OpenedRun:
    """Open a run folder to look at.

    Args:
        path: what `--out` named.

    Raises:
        AnamorphError: if it holds no run, or a damaged one.
    """
    run = folder.load_run(path)
    return OpenedRun(run.path, run.spec)
