"""What a report is made from: the files of a run folder, and nothing else."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from polars.exceptions import PolarsError

from anamorph.analysis.heads import SCORES, Heads
from anamorph.analysis.words import method_label, sites_label, split_size
from anamorph.errors import AnamorphError
from anamorph.faithfulness.gaps import LOOKS_RIGHT
from anamorph.faithfulness.metrics import JUDGED, SUFFIX, all_metrics, find_metric

IDENTITY = "identity"
MOST_FAMILIES = 12  # of proxies, where each takes room; a sweep by head has one a head

RESULTS = frozenset(
    [
        "seed",
        "simplification",
        "method",
        "size",
        "sites",
        "split",
        "role",
        "facet",
        "level",
        "metric",
        "value",
        "low",
        "high",
        "interval",
        "tokens",
        "sequences",
    ]
)
GAPS = frozenset(
    [
        "seed",
        "simplification",
        "method",
        "size",
        "sites",
        "split",
        "role",
        "metric",
        "reference",
        "iid",
        "ood",
        "gap",
        "low",
        "high",
        "low_all",
        "high_all",
        "p_value",
        "level",
        "change",
        "verdict",
        "needed",
    ]
)
VIEWS = {
    "functions": "simplification split sequence text jsd model proxy model_p proxy_p",
    "attended": "simplification split layer head facet true_level attended_level mass",
    "scatter": "layer head kind split position token component_1 component_2",
    "patterns": "simplification split sequence layer head query key weight",
    "sentences": "split sequence position token scored",
}


class Proxy(NamedTuple):
    """A proxy as the page shows it.

    Attributes:
        simplification: its spec string.
        method: such as "svd".
        size: rank, clusters, ..., or None.
        size_name: what the size is called, or "".
        family: the spec string without the size; what differs only in size shares it.
        title: the family in words.
    """

    simplification: str
    method: str
    size: float | None
    size_name: str
    family: str
    title: str

    @property
    def row(self) -> str:
        """Its name within the family: "rank 4", "64 clusters"; "" where there is no size."""
        if not self.size_name:
            return ""
        parts = [self.size_name, f"{self.size:g}"]
        return " ".join(reversed(parts) if self.size_name.endswith("s") else parts)


@dataclass(frozen=True)
class Run:
    """A run folder, read. Views come from the first seed that has them; each may be missing."""

    path: Path
    spec: dict[str, Any]
    results: pl.DataFrame
    gaps: pl.DataFrame
    claims: list[dict[str, Any]]
    checks: dict[str, Any]
    history: pl.DataFrame | None
    views: dict[str, pl.DataFrame]
    view_seed: int | None
    head_scores: pl.DataFrame | None = None

    @cached_property
    def proxies(self) -> list[Proxy]:
        """All proxies but the identity, by family, small sizes first."""
        frame = self.results.select("simplification", "method", "size", "sites").unique(
            maintain_order=True
        )
        proxies = []
        for simplification, method, size, sites in frame.iter_rows():
            if method == IDENTITY:
                continue
            family, name = split_size(simplification, size)
            joint = " · joint" if "joint=true" in family else ""
            where = " + ".join(sites_label(part) for part in sites.split(";"))
            title = f"{method_label(method)} · {where}{joint}"
            proxies.append(Proxy(simplification, method, size, name, family, title))
        # Families whose titles are alike (another parameter differs) are told apart by their spec.
        titles: dict[str, set[str]] = {}
        for proxy in proxies:
            titles.setdefault(proxy.title, set()).add(proxy.family)
        proxies = [p._replace(title=p.family) if len(titles[p.title]) > 1 else p for p in proxies]
        order = {family: i for i, family in enumerate(dict.fromkeys(p.family for p in proxies))}
        return sorted(proxies, key=lambda p: (order[p.family], p.size or 0))

    @cached_property
    def families(self) -> dict[str, list[Proxy]]:
        """Proxies by family title."""
        families: dict[str, list[Proxy]] = {}
        for proxy in self.proxies:
            families.setdefault(proxy.title, []).append(proxy)
        return families

    @cached_property
    def telling_families(self) -> dict[str, list[Proxy]]:
        """The families to show where there is no room for all: the most telling, in their order."""
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
            raise AnamorphError(
                f"{self.path / 'results.parquet'} has no split with the role iid; there is "
                "nothing to measure gaps against. Run the audit again."
            )
        return str(names[0])

    @property
    def ood(self) -> list[str]:
        """Names of the out-of-distribution splits."""
        return self.splits[1:]

    @cached_property
    def seeds(self) -> list[int]:
        """Model seeds."""
        return sorted(self.results["seed"].drop_nulls().unique().to_list())

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

    @property
    def thresholds(self) -> dict[str, float]:
        """Where the lines between verdicts were drawn."""
        given: dict[str, float] = self.spec.get("audit", {}).get("thresholds", {})
        return {"faithful": 0.9, "tolerance": 0.02, "level": 0.05, "share": 2 / 3} | given

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
        return self.gaps.filter(pl.col("seed").is_null(), pl.col("metric") == JUDGED)

    @cached_property
    def heads(self) -> Heads | None:
        """What was found of single heads; None if no proxy edits one alone."""
        model = self.spec.get("model") or {}
        return Heads.of(self.results, self.gaps, model, self.head_scores)

    def label(self, simplification: str) -> str:
        """A spec string in words."""
        for proxy in self.proxies:
            if proxy.simplification == simplification:
                return f"{proxy.title} · {proxy.row}" if proxy.size_name else proxy.title
        return "the model" if simplification == IDENTITY else simplification

    def telling(self, most: int, among: Collection[str] | None = None) -> list[Proxy]:
        """The proxies to show in detail, the most telling first.

        First those of which the run holds views; then illusions, the largest gap first; then what
        looks right at all; one of each family before a second of the same.

        Args:
            most: how many at most.
            among: spec strings to choose from; all if not given.
        """
        views = [self.views[name] for name in ("attended", "functions") if name in self.views]
        viewed = {name for view in views for name in view["simplification"]}
        judged = self.judged
        looking = set(judged.filter(level=LOOKS_RIGHT)["simplification"])
        illusions = judged.filter(pl.col("verdict").str.starts_with("illusion"))
        worst = dict(illusions.group_by("simplification").agg(pl.col("gap").max()).iter_rows())

        def rank(proxy: Proxy) -> tuple[bool, bool, float, bool, float]:
            name = proxy.simplification
            gap = -worst.get(name, 0)
            return name not in viewed, name not in worst, gap, name not in looking, proxy.size or 0

        ranked = sorted(self.proxies, key=rank)
        if among is not None:
            ranked = [proxy for proxy in ranked if proxy.simplification in among]
        seen: dict[str, int] = {}
        turns: list[tuple[tuple[bool, bool], int, int]] = []
        for proxy in ranked:
            seen[proxy.family] = seen.get(proxy.family, -1) + 1
            turns.append((rank(proxy)[:2], seen[proxy.family], len(turns)))
        return [ranked[place] for *_, place in sorted(turns)[:most]]


def read(path: Path) -> Run:
    """Read a run folder.

    Raises:
        AnamorphError: if the results are missing, or a file cannot be read or lacks columns.
    """
    for name in ("spec.json", "results.parquet", "gaps.parquet"):
        if not (path / name).is_file():
            raise AnamorphError(
                f"{path} has no {name}; a report is made from a finished run. Give the folder that "
                "`anamorph run --out` wrote, or run the same command again to finish it."
            )
    history: list[pl.DataFrame] = []
    heads: list[pl.DataFrame] = []
    views: dict[str, pl.DataFrame] = {}
    view_seed: int | None = None
    folders = sorted(path.glob("seed-*"), key=lambda folder: (len(folder.name), folder.name))
    for folder in folders:
        number = folder.name.removeprefix("seed-")
        if not number.isdigit():
            continue
        file = folder / "history.parquet"
        if file.is_file():
            columns = ["step", "tokens", "loss", "split", "accuracy", "cross_entropy"]
            frame = _table(file, columns).select(columns)
            history.append(frame.with_columns(seed=pl.lit(int(number))))
        file = folder / "heads.parquet"
        if file.is_file():
            columns = ["seed", "layer", "head", *SCORES, "sequences"]
            heads.append(_table(file, columns).select(columns))
        if not views:
            files = {name: folder / "views" / f"{name}.parquet" for name in VIEWS}
            found = {
                name: _table(file, VIEWS[name].split(), may_be_empty=True)
                for name, file in files.items()
                if file.is_file()
            }
            views = {name: view for name, view in found.items() if not view.is_empty()}
            view_seed = int(number) if views else None
    claims, checks = _json(path / "claims.json", []), _json(path / "checks.json", {})
    return Run(
        path=path,
        spec=_json(path / "spec.json", {}),
        results=_table(path / "results.parquet", RESULTS),
        gaps=_table(path / "gaps.parquet", GAPS),
        claims=claims,
        checks=checks,
        history=pl.concat(history, how="vertical_relaxed") if history else None,
        views=views,
        view_seed=view_seed,
        head_scores=pl.concat(heads) if any(map(len, heads)) else None,
    )


def _table(file: Path, columns: Collection[str], may_be_empty: bool = False) -> pl.DataFrame:
    try:
        frame = pl.read_parquet(file)
    except (PolarsError, OSError) as error:
        raise AnamorphError(
            f"Cannot read {file}: {str(error).splitlines()[0]}. It is not a whole Parquet file; "
            "delete it and run the same command again to make it anew."
        ) from error
    missing = sorted(set(columns) - set(frame.columns))
    if missing and not (may_be_empty and frame.is_empty()):
        raise AnamorphError(
            f"{file} has no column {', '.join(missing)}; it has {', '.join(frame.columns)}. "
            "It was written by another version; run the audit again."
        )
    broken = [c.name for c in frame if c.dtype.is_float() and not c.is_finite().all()]
    if broken:
        raise AnamorphError(
            f"{file} has a NaN or an infinity in {', '.join(broken)}; expected numbers. Delete it "
            "and run the same command again to make it anew."
        )
    return frame


def _json(file: Path, missing: Any) -> Any:
    if not file.is_file():
        return missing
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AnamorphError(
            f"Cannot read {file}: {error}. Expected JSON; delete it and run the same command again."
        ) from error
    if type(found) is not type(missing):
        raise AnamorphError(
            f"{file} holds a {type(found).__name__}; expected a {type(missing).__name__}. "
            "Delete it and run the same command again."
        )
    return found
