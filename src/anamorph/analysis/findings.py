"""What a run found, as reports, tables and sentences tell it."""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import polars as pl

from anamorph.analysis.heads import Heads
from anamorph.analysis.words import method_label, sites_label, sized, views_of
from anamorph.errors import RunFolderError
from anamorph.faithfulness.gaps import ILLUSIONS, LOOKS_RIGHT
from anamorph.faithfulness.metrics import JUDGED, SUFFIX, all_metrics, find_metric
from anamorph.runs.folder import Run, read_json
from anamorph.store import Address

IDENTITY = "identity"
KEPT = r"\bkeep=(\d+)"  # in a spec string: so many first positions are left as they are
PARAMETER = r"(\w+)=([^,()]+)"  # in a spec string
IN_TITLE = ("joint", "on", "keep")  # parameters that a title tells in words
MOST_FAMILIES = 12  # of proxies, where each takes room; a sweep by head has one a head


class NamedProxy(NamedTuple):
    """A proxy as the page shows it.

    Attributes:
        simplification: its spec string.
        method: such as "svd".
        size: rank, clusters, ..., or None.
        size_name: what the size is called, or None.
        family: the spec string without the size; what differs only in size shares it.
        title: the family in words.
    """

    simplification: str
    method: str
    size: float | None
    size_name: str | None
    family: str
    title: str

    @property
    def row(self) -> str:
        """Its name within the family: "rank 4", "64 clusters"; "" where there is no size."""
        return sized(self.size_name, [self.size])


class Findings(Run):
    """A run folder, with what follows from its tables. Pictures and curves may be missing.

    Its tables are those of the views; `controls` has the others.
    """

    @cached_property
    def _everything(self) -> Run:
        """The run, whose tables have views and controls."""
        return Run(self.path, self.spec)

    @cached_property
    def results(self) -> pl.DataFrame:
        """See `Run.results`; of the model and the views."""
        return views_of(self._everything.results)

    @cached_property
    def gaps(self) -> pl.DataFrame:
        """See `Run.gaps`; of the views."""
        return views_of(self._everything.gaps)

    @cached_property
    def contrasts(self) -> pl.DataFrame:
        """See `Run.contrasts`; of the views."""
        return views_of(self._everything.contrasts)

    @cached_property
    def controls(self) -> pl.DataFrame:
        """Of `Run.results` the rows of controls, for whole splits."""
        return self._everything.results.filter(
            pl.col("control").is_not_null(), pl.col("facet").is_null()
        )

    @cached_property
    def proxies(self) -> list[NamedProxy]:
        """All proxies but the identity, by family, small sizes first."""
        columns = ("simplification", "method", "size", "size_name", "family", "sites")
        frame = self.results.filter(pl.col("method") != IDENTITY).select(columns)
        proxies = []
        for row in frame.unique(maintain_order=True).iter_rows(named=True):
            joint = " · joint" if "joint=true" in row["family"] else ""
            where = " + ".join(sites_label(part) for part in row["sites"].split(";"))
            named = re.search(r"[( ]on=([^,)]+)", row["family"])
            on = f" · fitted on {named[1]}" if named else ""
            kept = re.search(KEPT, row["family"])
            keep = f" · from position {kept[1]} on" if kept else ""
            title = f"{method_label(row['method'])} · {where}{joint}{on}{keep}"
            title = title if row.pop("sites") else row["family"]
            proxies.append(NamedProxy(**row, title=title))
        titles = _told_apart({p.family: p.title for p in proxies})
        order = list(titles)
        proxies = [p._replace(title=titles[p.family]) for p in proxies]
        return sorted(proxies, key=lambda p: (order.index(p.family), p.size or 0))

    @cached_property
    def families(self) -> dict[str, list[NamedProxy]]:
        """Proxies by family title."""
        families: dict[str, list[NamedProxy]] = {}
        for proxy in self.proxies:
            families.setdefault(proxy.title, []).append(proxy)
        return families

    @cached_property
    def telling_families(self) -> dict[str, list[NamedProxy]]:
        """The most telling families, in their order, to show where there is room for a few."""
        ranked = dict.fromkeys(proxy.title for proxy in self.telling(len(self.proxies)))
        kept = list(ranked)[:MOST_FAMILIES]
        return {title: proxies for title, proxies in self.families.items() if title in kept}

    @cached_property
    def splits(self) -> list[str]:
        """Names of the splits, the reference first."""
        names = self.results["split"].unique(maintain_order=True).to_list()
        return [self.reference, *(name for name in names if name != self.reference)]

    @cached_property
    def reference(self) -> str:
        """The split that gaps are measured against."""
        names = self.results.filter(pl.col("role") == "iid")["split"]
        if names.is_empty():
            raise RunFolderError(
                f"{self.path / 'results.parquet'} has no split with the role iid; there is "
                "nothing to measure gaps against. Run the audit again."
            )
        return str(names[0])

    @property
    def ood(self) -> list[str]:
        """Names of the out-of-distribution splits."""
        return self.splits[1:]

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics that were measured, in the order in which they are reported."""
        present = {m for m in self.results["metric"].unique() if not m.endswith(SUFFIX)}
        known = [name for name in all_metrics() if name in present]
        return known + sorted(present - {*known})

    @property
    def shown_metrics(self) -> list[str]:
        """Of the metrics those that figures of proxies show: not what speaks of the model alone."""
        return [m for m in self.metrics if find_metric(m).about != "model"]

    @cached_property
    def whole(self) -> pl.DataFrame:
        """Results for whole splits."""
        return self.results.filter(pl.col("facet").is_null())

    @cached_property
    def pooled(self) -> pl.DataFrame:
        """Results for whole splits, over all seeds."""
        return self.whole.filter(pl.col("seed").is_null())

    @cached_property
    def judged(self) -> pl.DataFrame:
        """One row a proxy and ood split: of `gaps.parquet` same_prediction over all seeds."""
        return self.gaps.filter(pl.col("seed").is_null(), metric=JUDGED)

    @cached_property
    def cells(self) -> dict[str, list[dict[str, Any]]]:
        """By spec string the rows of `judged`, of every proxy that was judged."""
        cells: dict[str, list[dict[str, Any]]] = {}
        for row in self.judged.iter_rows(named=True):
            cells.setdefault(row["simplification"], []).append(row)
        return cells

    @cached_property
    def by_head(self) -> Heads | None:
        """What was found of single heads; None if no proxy edits one alone."""
        model = self.spec.get("model") or {}
        return Heads.of(self.results, self.gaps, model, self.heads)

    @cached_property
    def _labels(self) -> dict[str, str]:
        named = {p.simplification: " · ".join(filter(None, (p.title, p.row))) for p in self.proxies}
        return {IDENTITY: "the model"} | named

    def label(self, simplification: str) -> str:
        """A spec string in words."""
        return self._labels.get(simplification, simplification)

    def telling(self, most: int, among: Collection[str] | None = None) -> list[NamedProxy]:
        """The proxies to show in detail, the most telling first.

        First those of which the run holds pictures; then illusions, the largest gap first; then
        what looks right at all; one of each family before a second of the same.

        Args:
            most: how many at most.
            among: spec strings to choose from; all if not given.
        """
        views = [self.pictures[n] for n in ("attended", "functions", "worst") if n in self.pictures]
        pictured = {proxy for view in views for proxy in view["simplification"]}
        looking = set(self.judged.filter(level=LOOKS_RIGHT)["simplification"])
        illusions = self.judged.filter(pl.col("verdict").is_in(ILLUSIONS))
        worst = dict(illusions.group_by("simplification").agg(pl.col("gap").max()).iter_rows())

        def rank(proxy: NamedProxy) -> tuple[bool, bool, float, bool, float]:
            name = proxy.simplification
            first = (name not in pictured, name not in worst)
            return *first, -worst.get(name, 0), name not in looking, proxy.size or 0

        chosen = (p for p in self.proxies if among is None or p.simplification in among)
        ranked = sorted(chosen, key=rank)
        before: Counter[str] = Counter()  # of the same family
        turns = []
        for place, proxy in enumerate(ranked):
            turns.append((*rank(proxy)[:2], before[proxy.family], place))
            before[proxy.family] += 1
        return [ranked[place] for *_, place in sorted(turns)[:most]]


def read(path: Address) -> Findings:
    """What a finished run found.

    Raises:
        RunFolderError: if the folder has no specification or results. A file that cannot be read or
            lacks columns is an error where it is first looked at.
    """
    for name in ("spec.json", "results.parquet", "gaps.parquet"):
        if not (path / name).is_file():
            raise RunFolderError(
                f"{path} has no {name}; a report is made from a finished run. Give the folder that "
                "`anamorph run --out` wrote, or run the same command again to finish it."
            )
    return Findings(path, read_json(path / "spec.json", dict))


def _told_apart(titles: Mapping[str, str]) -> dict[str, str]:
    """The titles of families; those that are alike are told apart by what their specs differ in.

    Behind such a title stand the parameters that not all of them have; if titles are alike even so,
    the specs are the titles.
    """
    families: dict[str, list[str]] = {}
    for family, title in titles.items():
        families.setdefault(title, []).append(family)
    found = dict(titles)
    for title, alike in families.items():
        given = {f: [p for p in re.findall(PARAMETER, f) if p[0] not in IN_TITLE] for f in alike}
        for family in alike if len(alike) > 1 else ():
            own = [p for p in given[family] if any(p not in other for other in given.values())]
            words = [name if value == "true" else f"{name} {value}" for name, value in own]
            found[family] = " · ".join([title, *words])
    count = Counter(found.values())
    return {f: f if count[title] > 1 else title for f, title in found.items()}
