"""A run folder of proxies of single heads, small enough to work out by hand."""

import json
import re
from pathlib import Path
from typing import Any

import polars as pl

MODEL = {"layers": 2, "heads": 4, "key_heads": 2}
SPLITS = {"iid": "iid", "other_data": "ood"}
# Spec string and size; then same_prediction and the low end of its interval (the high end is as far
# away) on iid, and on the other split.
QUERY_3, QUERY_0 = (
    "svd(rank={0})@1.3.query;svd(rank={0})@1.1.key",
    "svd(rank={0})@1.0.{{query,key}}",
)
PROXIES: list[tuple[str, float | None, tuple[float, float], tuple[float, float]]] = [
    ("identity", None, (1, 1), (1, 1)),
    (QUERY_3.format(1), 1, (0.95, 0.93), (0.80, 0.78)),
    (QUERY_3.format(4), 4, (0.995, 0.991), (0.98, 0.97)),
    (QUERY_3.format(16), 16, (0.999, 0.998), (0.993, 0.985)),
    (QUERY_0.format(1), 1, (0.99, 0.97), (0.999, 0.99)),
    (QUERY_0.format(4), 4, (1, 1), (1, 1)),
    (QUERY_0.format(16), 16, (1, 1), (1, 1)),
    ("svd(rank=2)@0.1.key", 2, (0.9, 0.85), (0.9, 0.85)),
    ("onehot@0.2.pattern", None, (0.992, 0.985), (0.5, 0.4)),
    ("svd(rank=1)@1.*.{query,key}", 1, (0.3, 0.2), (0.2, 0.1)),  # of all heads at once
]
RIGHT = {"level": "looks right", "verdict": "faithful"}
WRONG = {"level": "does not look right", "verdict": "unfaithful"}
SCORES = {(0, 0): 0.1, (0, 1): 0.2, (0, 2): 0.3, (0, 3): 0.5, (1, 0): 0.0, (1, 3): 0.9}


def write(run: Path, model: dict[str, Any] = MODEL, seeds: tuple[int, ...] = (0,)) -> Path:
    results, gaps = [], []
    for seed in (*seeds, None):
        for name, size, *found in PROXIES:
            sites = ";".join(part.rpartition("@")[2] for part in name.split(";"))
            method = re.split(r"[(@]", name)[0]
            keys = {"seed": seed, "simplification": name, "method": method, "size": size}
            keys |= {"sites": "" if name == "identity" else sites}
            less = 0.1 * (seed or 0)  # a second seed is less faithful everywhere
            for (split, role), (value, low) in zip(SPLITS.items(), found, strict=True):
                of_split = keys | {"split": split, "role": role, "metric": "same_prediction"}
                number = {"value": value - less, "low": low - less}
                number |= {"high": min(1.0, 2 * value - low) - less, "interval": "binomial"}
                level = {"facet": None, "level": None, "tokens": 900, "sequences": 30}
                results.append(of_split | number | level)
                if role == "ood" and name != "identity":
                    gap = found[0][0] - value
                    gaps.append(
                        of_split
                        | {"reference": "iid", "iid": found[0][0] - less, "ood": value - less}
                        | {"gap": gap, "low": gap - 0.01, "high": gap + 0.02}
                        | {"low_all": gap - 0.03, "high_all": gap + 0.05}
                        | {"p_value": 0.01 if gap > 0.01 else 0.7}
                        | (RIGHT if found[0][0] >= 0.9 else WRONG)
                        | {"change": "none", "needed": None}
                    )
    run.mkdir()
    schema = {"seed": pl.Int64, "size": pl.Float64, "facet": pl.String, "level": pl.String}
    frame = pl.DataFrame(results, schema_overrides=schema, infer_schema_length=None)
    frame.write_parquet(run / "results.parquet")
    schema["level"], schema["needed"] = pl.String, pl.Int64
    pl.DataFrame(gaps, schema_overrides=schema, infer_schema_length=None).write_parquet(
        run / "gaps.parquet"
    )
    for seed in seeds:
        (run / f"seed-{seed}").mkdir()
        places = [*SCORES, (None, None)]
        numbers = [*SCORES.values(), 0.25]
        pl.DataFrame(
            {
                "seed": [seed] * len(places),
                "layer": [layer for layer, _ in places],
                "head": [head for _, head in places],
                "previous_token": numbers,
                "induction": [x / 10 for x in numbers],
                "copying": [x / 5 for x in numbers],
                "positional": [None if x == 0.3 else 1 - x for x in numbers],
                "sequences": [64] * len(places),
            }
        ).write_parquet(run / f"seed-{seed}" / "heads.parquet")
    choices = [{"what": "What", "choice": "this", "why": "so"}]
    spec = {"model": model, "training": None, "seeds": list(seeds), "choices": choices}
    (run / "spec.json").write_text(json.dumps(spec))
    return run
