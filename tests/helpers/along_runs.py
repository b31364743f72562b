"""Run folders along an axis, with numbers that are given."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from anamorph.faithfulness.gaps import NOT_TESTABLE, Thresholds, change_of, level_of, verdict

VIEW = "svd(rank={})@1.*.{{query,key}}"
SPLITS = ("iid", "near", "far")
HALF = 0.02  # of the width of an interval
Gap = Callable[[float, int, str], float]  # of a value, a rank and a split


def write_run(
    path: Path,
    settings: Mapping[str, Any],
    gap: Mapping[tuple[int, str], float],
    seeds: tuple[int, ...] = (0,),
    accuracy: float = 0.97,
    half: float = HALF,
) -> Path:
    """Write a run.

    Args:
        path: its folder.
        settings: by section of the specification, such as `training`.
        gap: by rank and `ood` split; on iid the view has 0.96 same predictions.
        seeds: of its models, which are all alike.
        accuracy: of the models; verdicts need more than 0.9.
        half: of the width of an interval.
    """
    results: list[dict[str, Any]] = []
    gaps: list[dict[str, Any]] = []
    ranks = sorted({rank for rank, _ in gap})
    splits = ["iid", *dict.fromkeys(split for _, split in gap)]
    for seed in (*seeds, None):
        for split in splits:
            where = {"seed": seed, "split": split, "role": "iid" if split == "iid" else "ood"}
            rest = {"facet": None, "level": None, "interval": "binomial", "control": None}
            rest |= {"tokens": 4000, "sequences": 400}
            own = {"simplification": "identity", "method": "identity", "size": None, "sites": ""}
            right = {"metric": "model_accuracy", "value": accuracy - 0.1 * (split != "iid")}
            right |= {"low": right["value"] - 0.01, "high": right["value"] + 0.01}
            results.append(where | rest | own | right)
            for rank in ranks:
                proxy = {"simplification": VIEW.format(rank), "method": "svd", "control": None}
                proxy |= {"size": float(rank), "sites": "1.*.{query,key}"}
                fall = gap.get((rank, split), 0.0)
                value = 0.96 - fall
                number = {"value": value, "low": value - half, "high": min(value + half, 1.0)}
                same = {"metric": "same_prediction"}
                results.append(where | rest | proxy | same | number)
                jsd = {"metric": "output_jsd", "value": 0.1 + fall, "low": 0.08, "high": 0.4}
                results.append(where | rest | proxy | jsd)
                if split != "iid":
                    gaps.append(where | proxy | same | _judged(fall, half, accuracy))
    path.mkdir(parents=True)
    schema = {"seed": pl.Int64, "size": pl.Float64, "facet": pl.String, "level": pl.String}
    schema |= {"needed": pl.Int64, "control": pl.String}
    for name, rows in (("results", results), ("gaps", gaps)):
        used = {key: kind for key, kind in schema.items() if key in rows[0]}
        frame = pl.DataFrame(rows, schema_overrides=used, infer_schema_length=None)
        frame.write_parquet(path / f"{name}.parquet")
    spec = {"study": "dyck", "task": {"name": "dyck"}, "model": {"width": 16}, "audit": {}}
    spec |= {"training": {"steps": 1}, "simplify": [], "seeds": list(seeds), "threads": 1}
    (path / "spec.json").write_text(json.dumps(spec | settings))
    (path / "report.html").write_text("a report")
    return path


def _judged(fall: float, half: float, accuracy: float) -> dict[str, Any]:
    thresholds = Thresholds()
    level = level_of(0.96 - half, 0.96 + half, thresholds)
    change = change_of(fall - half, fall + half, 0.001, thresholds)
    found = verdict(0.96, level, change, 0.1, 0.01, thresholds)
    numbers = {"reference": "iid", "iid": 0.96, "ood": 0.96 - fall, "gap": fall, "p_value": 0.01}
    numbers |= {"low": fall - half, "high": fall + half}
    numbers |= {"low_all": fall - 2 * half, "high_all": fall + 2 * half, "needed": None}
    found = found if accuracy > 0.9 else NOT_TESTABLE
    return numbers | {"level": level, "change": change, "verdict": found}
