"""How long questions across runs take: `python benchmarks/query.py --runs 100`.

It makes runs with tables as studies write them (about a million rows of results each, all numbers
drawn anew; 30 MB a run, in a temporary folder that is removed), and asks three questions by
`anamorph query`, each in a process of its own, with all that starts. It prints medians, and beside
them what `select 1` takes, which is the start alone. On a machine that does other work too, half of
the processors' seconds tell better what two cores take than the clock does.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from anamorph.faithfulness.gaps import FAITHFUL, UNDER, UNFAITHFUL
from anamorph.faithfulness.spooled import write_rows
from anamorph.files import write_json

QUESTIONS = {
    "the start alone": "select 1 as x",
    "gaps: illusions among small SVDs": """
        select run, split, count(*) filter (verdict like 'illusion%') as illusions, count(*) as n
        from gaps where seed is null and metric = 'same_prediction' and method = 'svd' and size <= 4
        group by all order by illusions desc, run, split""",
    "results: mean by method, size, split": """
        select method, size, split, avg(value) as value, count(*) as cells
        from results where metric = 'same_prediction' and facet is null and seed is null
        group by all order by all""",
    "results: the 20 worst levels": """
        select run, simplification, split, facet, level, value, low, high from results
        where metric = 'same_prediction' and facet is not null and seed is null
        order by value limit 20""",
}
METRICS = (
    *("same_prediction", "attention_jsd", "same_attention", "output_jsd", "output_kl"),
    *("model_accuracy", "proxy_accuracy", "model_cross_entropy", "proxy_cross_entropy"),
    *("proxy_only_right", "model_only_right", "different_errors"),
)
SPLITS = ("iid", "seen_structure", "unseen_short", "unseen_long", "unseen_depth")
SPLITS += ("unseen_depth_matched", "python", "java", "php", "ruby")
GROUPS = [(None, None), *(("depth", str(depth)) for depth in range(1, 5))]
GROUPS += [("distance", level) for level in ("10–15", "16–31", "32–63", "64–127", "128–255")]
SIZES = {"svd": (1, 2, 4, 8, 16, 32), "pca": (1, 4, 16), "kmeans": (4, 16, 64, 256)}
PROXIES = 417  # × 10 splits × 2 seeds × 10 groups × 12 metrics = 1,000,800 rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="of runs that were made before, or to keep")
    given = parser.parse_args()
    with TemporaryDirectory(prefix="anamorph-benchmark-") as temporary:
        folder = given.folder or Path(temporary)
        for number in range(given.runs):
            if not (folder / f"run-{number:03}" / "spec.json").exists():
                make_run(folder / f"run-{number:03}", number)
        size = sum(file.stat().st_size for file in folder.glob("*/*.parquet"))
        print(f"{given.runs} runs of {PROXIES * 2400:,} rows of results; {size / 1e9:.1f} GB")
        for name, sql in QUESTIONS.items():
            wall, work = zip(*(asked(sql, folder) for _ in range(given.times)), strict=True)
            print(
                f"{name:38} {statistics.median(wall):5.2f} s (least {min(wall):.2f}), "
                f"{statistics.median(work):5.2f} s of processors (least {min(work):.2f})"
            )


def asked(sql: str, folder: Path) -> tuple[float, float]:
    """Seconds from the command to its end, and seconds that processors worked for it."""
    start, worked = time.perf_counter(), of_children()
    command = [sys.executable, "-m", "anamorph", "query", sql, folder, "--csv"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start, of_children() - worked


def of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def make_run(folder: Path, number: int) -> None:
    rng = np.random.default_rng(number)
    results = results_of(rng, proxies_of(number))
    gaps = gaps_of(rng, results)
    folder.mkdir(parents=True)
    write_rows(folder / "gaps.parquet", gaps.lazy())
    write_rows(folder / "results.parquet", results.lazy())
    (folder / "claims.json").write_text("[]")
    spec = {"study": "dyck", "preset": "demo", "task": {"name": "dyck"}, "model": {"layers": 6}}
    spec |= {"training": {"steps": 100 * number}, "simplify": [], "audit": {}, "threads": 1}
    write_json(folder / "spec.json", spec | {"seeds": [0]})


def proxies_of(number: int) -> pl.DataFrame:
    """Views of single heads, in the order of a sweep."""
    rows = []
    for head in range(40):
        for method, sizes in SIZES.items():
            name, seed = ("clusters", f", seed={number}") if method == "kmeans" else ("rank", "")
            for size in sizes:
                sites = f"{head // 8}.{head % 8}.{{query,key}}"
                spec = f"{method}({name}={size}{seed})@{sites}"
                family = f"{method}{f'({seed[2:]})' if seed else ''}@{sites}"
                rows.append((spec, method, family, name, float(size), None, sites))
    columns = ["simplification", "method", "family", "size_name", "size", "control", "sites"]
    schema = dict.fromkeys(columns, pl.String) | {"size": pl.Float64}
    return pl.DataFrame(rows[:PROXIES], schema, orient="row")


def results_of(rng: np.random.Generator, proxies: pl.DataFrame) -> pl.DataFrame:
    """In the order of `anamorph.faithfulness.tabulate`."""
    shape = (len(SPLITS), len(proxies), 2, len(GROUPS), len(METRICS))
    split, proxy, seed, group, metric = (x.ravel() for x in np.indices(shape))
    value, half = rng.beta(8, 2, split.size), rng.uniform(0.001, 0.02, split.size)
    tokens = rng.integers(500, 9000, (len(SPLITS), len(GROUPS)))[split, group]

    def pick(values: Sequence[str | None], index: np.ndarray) -> pl.Series:
        return pl.Series(values, dtype=pl.String).gather(index)

    return pl.DataFrame(
        {
            "seed": pl.Series([0, None], dtype=pl.Int64).gather(seed),
            **proxies[proxy].to_dict(),
            "split": pick(SPLITS, split),
            "role": pick(["iid", *["ood"] * (len(SPLITS) - 1)], split),
            "facet": pick([facet for facet, _ in GROUPS], group),
            "level": pick([level for _, level in GROUPS], group),
            "metric": pick(METRICS, metric),
            "value": value,
            "low": value - half,
            "high": value + half,
            "interval": pick(["binomial"], np.zeros_like(split)),
            "tokens": tokens,
            "sequences": np.full(split.size, 2000),
        }
    )


def gaps_of(rng: np.random.Generator, results: pl.DataFrame) -> pl.DataFrame:
    whole = results.filter(pl.col("facet").is_null(), role="ood")
    iid = pl.Series(rng.beta(9, 1, len(whole)))
    table = whole.select(
        *whole.columns[: whole.columns.index("facet")],
        "metric",
        reference=pl.lit("iid"),
        iid=iid,
        ood="value",
        gap=iid - pl.col("value"),
    )
    ends = {"low": -0.01, "high": 0.01, "low_all": -0.02, "high_all": 0.02}
    verdict = (
        pl.when(pl.col("gap") < 0.02)
        .then(pl.lit(FAITHFUL))
        .otherwise(pl.when(pl.col("iid") < 0.9).then(pl.lit(UNFAITHFUL)).otherwise(pl.lit(UNDER)))
    )
    judged = pl.when(metric="same_prediction")
    return table.with_columns(
        **{name: pl.col("gap") + off for name, off in ends.items()},
        p_value=pl.Series(rng.uniform(0, 1, len(table))),
        level=judged.then(pl.lit("looks right")),
        change=judged.then(pl.lit("worse")),
        verdict=judged.then(verdict),
        needed=pl.lit(None, pl.Int64),
    )


if __name__ == "__main__":
    main()
