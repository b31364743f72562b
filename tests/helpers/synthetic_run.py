"""A small run folder with invented numbers, shaped like a real one, for the report's tests."""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from anamorph.faithfulness.gaps import (
    UNDECIDED,
    Thresholds,
    change_of,
    level_of,
    verdict,
)

THRESHOLDS = Thresholds()
SEQUENCES = 2000  # audited of a split
NASTY = '<script>alert("x")</script>'
SPLITS = {
    "iid": "iid",
    "seen_structure": "ood",
    "unseen_short": "ood",
    "unseen_long": "ood",
    "unseen_depth": "ood",
    "unseen_depth_matched": "ood",
}
HARDNESS = dict(zip(SPLITS, (0.1, 0.0, 0.03, 0.12, 0.5, 0.35), strict=True))
DEPTHS = {name: 20 if "depth" in name else 10 for name in SPLITS}
BINS = ("10–15", "16–31", "32–63", "64–127", "128–255")
FACETS = ("depth", "distance", "length")
LAYER_1 = "1.*.{query,key}"
PROXIES: list[tuple[str, str, float | None, str]] = [
    ("identity", "identity", None, ""),
    *(
        (f"svd(rank={r}, joint=true)@0.*.{{query,key}}", "svd", r, "0.*.{query,key}")
        for r in (1, 4, 16)
    ),
    *((f"svd(rank={r}, joint=true)@{LAYER_1}", "svd", r, LAYER_1) for r in (1, 2, 4, 8, 16, 32)),
    *((f"kmeans(clusters={c})@{LAYER_1}", "kmeans", c, LAYER_1) for c in (4, 16, 64, 256)),
    ("onehot@1.*.pattern", "onehot", None, "1.*.pattern"),
]
VIEWED = ["identity", f"svd(rank=8, joint=true)@{LAYER_1}", "onehot@1.*.pattern"]


def make_run(run: Path, seeds: Sequence[int] = (0, 1), nasty: bool = True) -> Path:
    """Write every file that a report reads; `nasty` names a token and a facet level badly."""
    rng = np.random.default_rng(0)
    run.mkdir(parents=True, exist_ok=True)
    _write_json(run, seeds)
    results = pl.concat([_results(rng, seed) for seed in (*seeds, None)])
    results.write_parquet(run / "results.parquet")
    _gaps(results).write_parquet(run / "gaps.parquet")
    for seed in seeds:
        views = run / f"seed-{seed}" / "views"
        views.mkdir(parents=True, exist_ok=True)
        _history(rng).write_parquet(run / f"seed-{seed}" / "history.parquet")
        _attended(rng, nasty).write_parquet(views / "attended.parquet")
        _scatter(rng, nasty).write_parquet(views / "scatter.parquet")
        sentences = _sentences(rng, nasty)
        sentences.write_parquet(views / "sentences.parquet")
        _patterns(rng, sentences).write_parquet(views / "patterns.parquet")
    return run


def _write_json(run: Path, seeds: Sequence[int]) -> None:
    spec = {
        "anamorph": "0.1.0",
        "study": "dyck",
        "preset": "demo",
        "task": {"name": "dyck", "k": 20, "m": 10, "train": 200_000, "test": 2000},
        "about": {
            "facts": ["k = 20", "m = 10"],
            "labels": {"depth": "key depth (depth of the opener)"},
            "borders": {"depth": "10"},
            "matched": "depth",
        },
        "model": {"name": "decoder", "layers": 2, "heads": 1, "width": 32},
        "training": {"steps": 4000, "optimizer": "muon", "learning_rate": 0.003},
        "simplify": [
            "svd(rank=[1,4,16],joint=true)@0.*.{query,key}",
            "svd(rank=[1,2,4,8,16,32],joint=true)@1.*.{query,key}",
            "kmeans(clusters=[4,16,64,256])@1.*.{query,key}",
            "onehot@1.*.pattern",
        ],
        "audit": {
            "sequences": 2000,
            "fit_sequences": 1000,
            "thresholds": {"faithful": 0.9, "tolerance": 0.02, "level": 0.05, "share": 0.667},
        },
        "seeds": list(seeds),
        "choices": [
            {"what": "Optimizer", "choice": "Muon, 4,000 steps", "why": "generalizes fastest"},
            {"what": "Width", "choice": "32", "why": "the paper's width is unknown"},
        ],
        "environment": {"python": "3.11.2", "torch": "2.13.0", "commit": "0123abc", "cores": 2},
    }
    claims = [
        {"id": "C1", "claim": "The model generalizes.", "status": "holds", "finding": "0.998 seen."}
        | {"numbers": {"seen": 0.998}, "rule": "Its accuracy is at least .98."},
        {"id": "C2", "claim": "Faithfulness grows with size.", "status": "does not hold"}
        | {"finding": "It falls once, from rank 8 to 16.", "numbers": {}},
        {"id": "C7", "claim": "Errors are shared.", "status": "not testable here"}
        | {"finding": "The model has not learnt.", "numbers": {}},
        {"id": "C9", "claim": "Code.", "status": "not tested here", "finding": "No code."}
        | {"numbers": {}},
    ]
    checks = {
        "identity": {"same_prediction": 1.0, "attention_jsd": 0.0, "output_jsd": 0.0},
        "noise_floor": {
            "simplification": f"svd(rank=32, joint=true)@{LAYER_1}",
            "same_prediction": 0.99998,
            "output_jsd": 3.1e-7,
        },
        "rounding": {"logits": 1.9e-6, "positions": 412, "ties": 3},
    }
    for name, content in (("spec", spec), ("claims", claims), ("checks", checks)):
        (run / f"{name}.json").write_text(json.dumps(content))


def _results(rng: np.random.Generator, seed: int | None) -> pl.DataFrame:
    rows: list[dict[str, Any]] = []
    for (spec, method, size, sites), (split, role) in product(PROXIES, SPLITS.items()):
        levels = [(None, None), *(("depth", str(d)) for d in range(1, DEPTHS[split] + 1))]
        levels += [("distance", name) for name in BINS] + [("length", name) for name in BINS]
        for facet, level in levels:
            hard = HARDNESS[split]
            if facet == "depth" and level is not None:
                hard *= int(level) / 10
            tokens = round(9000 * (1 + hard)) if facet is None else 500
            values = _numbers(rng, spec, method, size, hard, facet is None)
            keys = {"seed": seed, "simplification": spec, "method": method, "size": size}
            keys |= {"sites": sites, "split": split, "role": role, "facet": facet, "level": level}
            for metric, value in values.items():
                width = 0.004 + 0.03 * hard + (0.02 if facet else 0)
                rows.append(
                    keys
                    | {"metric": metric, "value": value, "low": max(0.0, value - width)}
                    | {
                        "high": value + width,
                        "interval": "binomial",
                        "tokens": tokens,
                        "sequences": SEQUENCES,
                    }
                )
    schema = {"seed": pl.Int64, "size": pl.Float64, "facet": pl.String, "level": pl.String}
    return pl.DataFrame(rows, schema_overrides=schema)


def _numbers(
    rng: np.random.Generator,
    spec: str,
    method: str,
    size: float | None,
    hard: float,
    whole: bool,
) -> dict[str, float]:
    model = float(np.clip(1 - 0.5 * hard + rng.normal(0, 0.004), 0, 1))
    if method == "identity":
        lost = 0.0
    elif method == "onehot":
        lost = 0.01 + 0.2 * hard
    else:
        scale = 3.0 if method == "svd" else 20.0
        lost = float(np.exp(-(size or 1) / scale / (1 + 2 * hard))) * (0.5 + hard)
    same = float(np.clip(1 - lost + (rng.normal(0, 0.003) if lost else 0), 0, 1))
    apart = 1 - same
    over = {"onehot": 0.8, "kmeans": 0.5}.get(method, 0.15)
    proxy_only = min(1 - model, apart * over)
    model_only = min(model, apart * (1 - over) * 0.8)
    values = {
        "same_prediction": same,
        "attention_jsd": 0.6 * apart,
        "same_attention": 1 - 1.2 * apart if apart < 0.8 else 0.0,
        "output_jsd": 0.7 * apart,
        "output_kl": 3 * apart,
        "model_accuracy": model,
        "proxy_accuracy": model - model_only + proxy_only,
        "model_cross_entropy": 1 + hard,
        "proxy_cross_entropy": 1 + hard + apart,
        "proxy_only_right": proxy_only,
        "model_only_right": model_only,
        "different_errors": min(max(0.0, apart - proxy_only - model_only), 1 - model - proxy_only),
    }
    if whole:
        for name in ("same_prediction", "model_accuracy", "proxy_accuracy"):
            values[f"{name}_per_sequence"] = 0.5 + values[name] / 2
    return values


def _gaps(results: pl.DataFrame) -> pl.DataFrame:
    whole = results.filter(pl.col("facet").is_null(), pl.col("method") != "identity")
    keys = ["seed", "simplification", "metric"]
    ends = {"iid": "value", "iid_low": "low", "iid_high": "high"}
    iid = whole.filter(pl.col("split") == "iid").select(*keys, **ends)
    sides = whole.pivot(
        on="metric", index=["seed", "simplification", "split"], values="value"
    ).select("seed", "simplification", "split", "model_only_right", "proxy_only_right")
    good = pl.col("metric").str.contains("same|accuracy")
    gaps = (
        whole.filter(pl.col("split") != "iid")
        .rename({"value": "ood"})
        .drop("low", "high")
        .join(iid, on=keys, nulls_equal=True, maintain_order="left")
        .join(sides, on=["seed", "simplification", "split"], nulls_equal=True)
        .with_columns(
            gap=(pl.col("iid") - pl.col("ood")) * pl.when(good).then(1).otherwise(-1),
            half=pl.col("split").replace_strict({s: 0.004 + 0.02 * h for s, h in HARDNESS.items()}),
        )
        .with_columns(
            low=pl.col("gap") - pl.col("half"),
            high=pl.col("gap") + pl.col("half"),
            low_all=pl.col("gap") - 1.5 * pl.col("half"),
            high_all=pl.col("gap") + 1.5 * pl.col("half"),
            reference=pl.lit("iid"),
            p_value=pl.lit(0.003),
        )
    )
    judged = [_judged(row) for row in gaps.iter_rows(named=True)]
    schema = {"level": pl.String, "change": pl.String, "verdict": pl.String, "needed": pl.Int64}
    return pl.concat(
        [gaps.drop("level"), pl.DataFrame(judged, schema=schema, orient="row")], how="horizontal"
    ).select(
        *("seed", "simplification", "method", "size", "sites", "split", "role", "metric"),
        *("reference", "iid", "ood", "gap", "low", "high", "low_all", "high_all", "p_value"),
        *("level", "change", "verdict", "needed"),
    )


def _judged(row: dict[str, Any]) -> tuple[str | None, str | None, str | None, int | None]:
    """Level, change, verdict and the number of sequences that would decide."""
    if row["metric"] != "same_prediction":
        return None, None, None, None
    level = level_of(row["iid_low"], row["iid_high"], THRESHOLDS)
    change = change_of(row["low"], row["high"], 0.001, THRESHOLDS)
    found = verdict(
        row["iid"], level, change, row["model_only_right"], row["proxy_only_right"], THRESHOLDS
    )
    return level, change, found, 2 * SEQUENCES if found == UNDECIDED else None


def _history(rng: np.random.Generator) -> pl.DataFrame:
    rows = []
    for step, split in product(range(0, 4001, 250), SPLITS):
        done = 1 - np.exp(-step / 900)
        right = done * (1 - 0.5 * HARDNESS[split]) + rng.normal(0, 0.01)
        rows.append(
            {"step": step, "tokens": step * 8000, "loss": 4 - 2.5 * done, "split": split}
            | {"accuracy": float(np.clip(right, 0.05, 1)), "cross_entropy": 4 - 3 * done}
        )
    return pl.DataFrame(rows)


def _attended(rng: np.random.Generator, nasty: bool) -> pl.DataFrame:
    rows = []
    for spec, split, layer in product(VIEWED, SPLITS, (0, 1)):
        most = DEPTHS[split]
        for true, other in product(range(1, most + 1), range(most + 1)):
            spread = 0.6 if layer else 4.0
            mass = np.exp(-(((true - other) / spread) ** 2)) * (1.3 - true / 20)
            if mass < 1e-4:
                continue
            level = str(other) if other else (NASTY if nasty else "–")
            rows.append(
                {"simplification": spec, "split": split, "layer": layer, "head": 0}
                | {"facet": "depth", "true_level": str(true), "attended_level": level}
                | {"mass": float(mass * (100 + rng.normal())), "argmax": int(mass * 100)}
            )
    return pl.DataFrame(rows)


def _scatter(rng: np.random.Generator, nasty: bool) -> pl.DataFrame:
    rows = []
    for layer, kind, split in product((0, 1), ("query", "key"), SPLITS):
        for point in range(150):
            depth = int(rng.integers(1, DEPTHS[split] + 1))
            bracket = int(rng.integers(20))
            token = NASTY if nasty and bracket == 0 else f"({bracket}"
            angle = 6.283 * bracket / 20
            rows.append(
                {"layer": layer, "head": 0, "kind": kind, "split": split, "sequence": point // 10}
                | {"position": point % 10 * 7, "token": token, "depth": str(depth)}
                | {"distance": None if point % 3 else BINS[point % 5]}
                | {"component_1": depth / 3 + float(rng.normal(0, 0.3)) + float(np.cos(angle))}
                | {"component_2": float(np.sin(angle)) + float(rng.normal(0, 0.3))}
            )
    return pl.DataFrame(rows, schema_overrides={"distance": pl.String})


def _sentences(rng: np.random.Generator, nasty: bool) -> pl.DataFrame:
    rows = []
    for sequence, split in enumerate(("iid", "unseen_long", "unseen_depth")):
        half = 8 + 4 * sequence
        types = rng.integers(0, 20, half)
        tokens = [f"({t}" for t in types] + [f"{t})" for t in types[::-1]]
        tokens[1] = NASTY if nasty else tokens[1]
        for position, token in enumerate(["START", *tokens, "END"]):
            rows.append(
                {"split": split, "sequence": sequence, "position": position, "token": token}
                | {"scored": position > half + 5 and token != "END"}
            )
    return pl.DataFrame(rows)


def _patterns(rng: np.random.Generator, sentences: pl.DataFrame) -> pl.DataFrame:
    rows = []
    lengths = sentences.group_by("split", "sequence", maintain_order=True).len()
    for spec, layer, (split, sequence, length) in product(VIEWED, (0, 1), lengths.iter_rows()):
        for query in range(length):
            scores = rng.normal(0, 1 if layer == 0 else 4, query + 1)
            weights = np.exp(scores) / np.exp(scores).sum()
            rows += [
                {"simplification": spec, "split": split, "sequence": sequence, "layer": layer}
                | {"head": 0, "query": query, "key": key, "weight": float(weight)}
                for key, weight in enumerate(weights)
            ]
    return pl.DataFrame(rows)


ODD = ("</script><script>alert(1)</script>", "\u202egnirts", "nul\x00", "<b>&amp;")
"""Tokens that could end a script, turn a text around or cut it off."""


def make_texts(run: Path, sequences: int = 40, length: int = 120, proxies: int = 2) -> Path:
    """Add texts to be shown, of every second split; the first has the names in `ODD`.

    Sequences with odd numbers have no difference; the others are the worse the lower their number.
    """
    rng = np.random.default_rng(1)
    names = np.array(list("abcdefg (){};\n<>&é𝒳"), object)

    def drawn(*shape: int) -> list[Any]:
        return names[rng.integers(0, len(names), shape)].tolist()  # type: ignore[no-any-return]

    rows = []
    for number in range(8):
        tokens = [*(ODD if number == 0 else ()), *drawn(length)]
        count = len(tokens)
        model, model_p = drawn(count, 3), rng.integers(0, 101, (count, 3)) / 100
        same = (rng.random(count) < (1.0 if number % 2 else 0.8)).tolist()
        other = [a if keep else b for keep, a, b in zip(same, model, drawn(count, 3), strict=True)]
        rows.append(
            {
                "same_prediction": float(np.mean(same)),
                "length": count,
                "start": 0,
                "separate": False,
                "token": tokens,
                "scored": [True] * count,
                "jsd": np.where(same, 0.0, rng.random(count)).tolist(),
                "same": same,
                "model_right": [True] * count,
                "proxy_right": same,
                "model": model,
                "model_p": model_p.tolist(),
                "proxy": other,
                "proxy_p": (rng.integers(0, 101, (count, 3)) / 100).tolist(),
            }
        )
    number = pl.int_range(sequences, eager=True)
    few = pl.DataFrame(rows)[[i if i < 8 else 2 + i % 6 for i in range(sequences)]]
    about = {
        "split": number.map_elements(lambda i: list(SPLITS)[i % 2], pl.String),
        "sequence": number,
        "rank": number // 2,
        "number": number,
        "id": number.map_elements(lambda i: f"<i>{i}</i>", pl.String),
        "value": 1 / (number + 1),
    }
    tables = [
        few.select(pl.lit(name).alias("simplification"), **about).hstack(few)
        for name in VIEWED[1 : 1 + proxies]
    ]
    pl.concat(tables).write_parquet(run / "seed-0" / "views" / "worst.parquet")
    return run
