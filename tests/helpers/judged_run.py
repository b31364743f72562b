"""A run folder whose verdicts are given, with numbers that fit them."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from anamorph.faithfulness.gaps import (
    DEGRADES,
    FAITHFUL,
    MIXED,
    NOT_TESTABLE,
    OVER,
    UNDECIDED,
    UNDER,
    UNFAITHFUL,
)

NARROW = {"iid": 400, "near": 400, "far": 400}
UNCLEAR = "undecided, as it is unclear whether it looks right on iid"
WORSE_BUT_UNCLEAR = (
    "an illusion by its number on iid, of which it is unclear whether it looks right"
)
BY_NUMBER = "degrades by its number on iid, of which it is unclear whether it looks right"
HOPELESS = "undecided, and more sequences alone would not decide"
# Of each verdict: level, change, iid, ood, needed.
NUMBERS: dict[str, tuple[str, str, float, float, int | None]] = {
    FAITHFUL: ("looks right", "none", 0.96, 0.959, None),
    UNDER: ("looks right", "worse", 0.96, 0.80, None),
    OVER: ("looks right", "worse", 0.96, 0.82, None),
    MIXED: ("looks right", "worse", 0.96, 0.84, None),
    DEGRADES: ("does not look right", "worse", 0.796, 0.634, None),
    UNFAITHFUL: ("does not look right", "better", 0.796, 0.998, None),
    UNDECIDED: ("looks right", "undecided", 0.96, 0.938, 1200),
    UNCLEAR: ("unclear", "none", 0.91, 0.911, 900),
    WORSE_BUT_UNCLEAR: ("unclear", "worse", 0.91, 0.70, None),
    BY_NUMBER: ("unclear", "worse", 0.89, 0.70, None),
    HOPELESS: ("looks right", "undecided", 0.96, 0.94, None),
    NOT_TESTABLE: ("looks right", "none", 0.99, 0.99, None),
}


def write(
    run: Path,
    cells: Mapping[str, Mapping[str, str]],
    spec: Mapping[str, Any] | None = None,
    sequences: Mapping[str, int] = NARROW,
    accuracy: float = 0.99,
    seeds: tuple[int, ...] = (0,),
) -> Path:
    """Write it.

    Args:
        run: a folder to make.
        cells: by spec string such as `svd(rank=4)@0.*.key` the verdict on each split, one of
            `NUMBERS`.
        spec: what `spec.json` holds.
        sequences: of each split; scored positions are ten times as many.
        accuracy: of the model, everywhere.
        seeds: of the models, which are all alike.
    """
    results: list[dict[str, Any]] = []
    gaps: list[dict[str, Any]] = []
    for seed in (*seeds, None):
        for split, count in sequences.items():
            where = {"split": split, "role": "iid" if split == "iid" else "ood"}
            counts = {"interval": "binomial", "tokens": 10 * count, "sequences": count}
            level = {"seed": seed, "facet": None, "level": None}
            model = {"simplification": "identity", "method": "identity", "size": None, "sites": ""}
            shares = {"model_accuracy": accuracy, "same_prediction": 1.0}
            for metric, value in (shares | {"model_cross_entropy": 0.1}).items():
                number = {"metric": metric, "value": value, "low": value, "high": value}
                results.append(level | model | where | counts | number)
            for name, verdicts in cells.items():
                wanted = verdicts[split] if split in verdicts else next(iter(verdicts.values()))
                judged, change, iid, ood, needed = NUMBERS[wanted]
                size = re.search(r"=([0-9.]+)", name)
                proxy = {"simplification": name, "method": re.split("[(@]", name)[0]}
                proxy |= {"size": float(size[1]) if size else None}
                proxy |= {"sites": ";".join(part.partition("@")[2] for part in name.split(";"))}
                value = iid if split == "iid" else ood
                number = {"value": value, "low": value - 0.01, "high": value + 0.01}
                same = {"metric": "same_prediction"}
                results.append(level | proxy | where | counts | same | number)
                if split == "iid":
                    continue
                verdict = UNDECIDED if wanted in (UNCLEAR, HOPELESS) else wanted
                verdict = UNDER if wanted == WORSE_BUT_UNCLEAR else verdict
                verdict = DEGRADES if wanted == BY_NUMBER else verdict
                gap = {"reference": "iid", "iid": iid, "ood": ood, "gap": iid - ood}
                gap |= {"low": iid - ood - 0.01, "high": iid - ood + 0.01}
                gap |= {"low_all": iid - ood - 0.03, "high_all": iid - ood + 0.03}
                gap |= {"p_value": 0.01, "level": judged, "change": change}
                gap |= {"verdict": verdict, "needed": needed, "seed": seed}
                gaps.append(proxy | where | same | gap)
    run.mkdir()
    schema = {"seed": pl.Int64, "size": pl.Float64, "facet": pl.String, "level": pl.String}
    schema |= {"needed": pl.Int64}
    for name, rows in (("results", results), ("gaps", gaps)):
        used = {key: value for key, value in schema.items() if key in rows[0]}
        frame = pl.DataFrame(rows, schema_overrides=used, infer_schema_length=None)
        frame.write_parquet(run / f"{name}.parquet")
    (run / "spec.json").write_text(json.dumps({"seeds": seeds, **(spec or {})}))
    return run
