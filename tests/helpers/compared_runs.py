"""Run folders with given sums per sequence, to be compared."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anamorph.faithfulness.measuring import CellKey, ProxyInfo
from anamorph.faithfulness.sums import CellSums, Group, SumIndex
from anamorph.faithfulness.tables import tabulate
from anamorph.runs.folder import Run

METRICS = (
    *("same_prediction", "output_kl", "model_accuracy", "model_cross_entropy"),
    *("model_only_right", "proxy_only_right"),
)
SPLITS = ("iid", "near", "far")
VIEW, OTHER, CONTROL = "svd(rank=2)@1.*.key", "onehot@1.*.pattern", "random(rank=2)@1.*.key"
PROXIES = ("identity", VIEW, OTHER, CONTROL)


class Sentence(NamedTuple):
    """A sequence of a split: a digest, and how many positions are scored."""

    digest: str
    scored: int


Data = Mapping[str, list[Sentence]]
Agreeing = Mapping[str, NDArray[np.float64]]  # by split, positions that agree in each sequence


def data(sequences: int, of: str = "") -> dict[str, list[Sentence]]:
    """Sequences of one to five scored positions; `of` tells them from others."""
    return {
        split: [Sentence(f"{of}{split}-{n}", 1 + n % 5) for n in range(sequences)]
        for split in SPLITS
    }


def agreeing(given: Data, share: Mapping[str, float], seed: int) -> dict[str, NDArray[np.float64]]:
    """Positions that agree, drawn; `share` has one a split."""
    rng = np.random.default_rng(seed)
    return {
        split: rng.binomial([s.scored for s in given[split]], share[split]).astype(float)
        for split in given
    }


def write(
    path: Path,
    given: Data,
    agree: Mapping[int, Mapping[str, Agreeing]],
    *,
    weights: str = "w",
    spec: Mapping[str, Any] | None = None,
) -> Path:
    """Write a run folder.

    Args:
        path: to be made.
        given: its data.
        agree: by seed and proxy. Other metrics follow from these: a model that is right everywhere,
            and a divergence of a quarter of a bit where proxy and model do not agree.
        weights: a digest of the models' weights.
        spec: what its specification has besides.
    """
    kept: dict[str, Any] = {"study": "given", "task": {}, "model": {"name": path.name}}
    kept |= {"training": None, "simplify": [], "audit": {}, "threads": 1, "anamorph": "1"}
    path.mkdir(parents=True)
    (path / "spec.json").write_text(json.dumps(kept | {"seeds": [*agree]} | dict(spec or {})))
    run, cells = Run(path, kept), dict[CellKey, CellSums]()
    for split, sentences in given.items():
        scored = np.array([s.scored for s in sentences])
        table = pl.DataFrame(
            {"digest": [s.digest for s in sentences], "length": 2 * scored, "scored": scored}
        )
        run.sequences(split).parent.mkdir(exist_ok=True)
        table.with_row_index("sequence").write_parquet(run.sequences(split))
        for seed, of_proxies in agree.items():
            tables = []
            for name in PROXIES:
                here = of_proxies[name][split] if name in of_proxies else scored.astype(float)
                cells[seed, name, split] = _cell(scored, here)
                sums = cells[seed, name, split].table()
                tables.append(sums.select(pl.lit(name).alias("proxy"), pl.all()))
            work = run.work(seed, split, 0)
            work.parent.mkdir(parents=True, exist_ok=True)
            digest = {"weights": f"{weights}{seed}"}
            pl.concat(tables).write_parquet(work, metadata=digest, row_group_size=len(scored))
    roles = {split: "iid" if split == "iid" else "ood" for split in given}
    tables_ = tabulate(cells, [_info(name) for name in PROXIES], roles, reference="iid")  # type: ignore[arg-type]
    tables_.results.write_parquet(path / "results.parquet")
    tables_.gaps.write_parquet(path / "gaps.parquet")
    (path / "claims.json").write_text("[]")
    return path


def _info(name: str) -> ProxyInfo:
    method, _, sites = name.partition("@")
    control = "random" if name == CONTROL else None
    return ProxyInfo(name, method.partition("(")[0], name, None, None, control, sites)


def _cell(scored: NDArray[np.int64], agree: NDArray[np.float64]) -> CellSums:
    count = len(scored)
    index = SumIndex(
        sequence=np.arange(count, dtype=np.int32),
        tokens=scored,
        rows_of=np.repeat(np.arange(count), scored)[:, None],
        groups=(Group(None, None, slice(0, count)),),
        sequences=count,
    )
    cell, wrong = CellSums(index, METRICS), scored - agree
    for place, numbers in enumerate((agree, wrong / 4, scored, scored / 2, wrong, 0 * wrong)):
        cell.sums[place] = cell.sums.new_tensor(numbers)
    return cell
