"""A run's summary for programs, against its Parquet files by plain loops."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from anamorph.analysis.findings import Findings
from anamorph.analysis.outline import MOST_CELLS, outline
from anamorph.faithfulness.gaps import FAITHFUL, OVER, UNDECIDED, UNDER, UNFAITHFUL
from anamorph.report.opened import load_run
from judged_run import write
from synthetic_run import make_run

SPEC: dict[str, Any] = {
    "study": "dyck", "preset": "demo", "task": {"name": "dyck", "k": 3, "made": "x" * 999},
    "training": {"steps": 3500}, "model": {"layers": 2, "heads": 1}, "audit": {}, "seeds": [0],
    "simplify": [f"svd(rank={n})@0.*.key" for n in range(1, 500)], "threads": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_run(tmp_path_factory.mktemp("runs") / "run")
    spec = json.loads((path / "spec.json").read_text())
    (path / "spec.json").write_text(json.dumps(spec | {"threads": 1}))
    return path


def test_every_number_is_that_of_the_results(synthetic: Path) -> None:
    said = json.loads(json.dumps(load_run(synthetic).summary(), allow_nan=False))
    values = {
        (row["simplification"], row["split"], row["metric"]): row
        for row in pl.read_parquet(synthetic / "results.parquet").to_dicts()
        if row["seed"] is None and row["facet"] is None
    }
    gaps = {
        (row["simplification"], row["split"]): row
        for row in pl.read_parquet(synthetic / "gaps.parquet").to_dicts()
        if row["seed"] is None and row["metric"] == "same_prediction"
    }
    seen = 0
    places = [(view["simplification"], view["splits"]) for view in said["views"]]
    for name, splits in [*places, ("identity", said["model"])]:
        assert next(iter(splits)) == "iid" and len(splits) == 6
        for split, cell in splits.items():
            for key, found in cell.items():
                if key in ("verdict", "needed"):
                    assert found == gaps[name, split][key]
                    continue
                row = gaps[name, split] if key == "gap" else values[name, split, key]
                expected = [row["gap" if key == "gap" else "value"], row["low"], row["high"]]
                assert found == pytest.approx(expected, rel=1e-3), (name, split, key)
                seen += 1
    assert seen == 14 * (6 * 4 + 5) + 6 * 2
    assert said["shown"] == {"views": 14, "of": 14}


def test_counts_are_those_of_the_verdicts(synthetic: Path) -> None:
    said = load_run(synthetic).summary()
    counted: Counter[tuple[str, str]] = Counter()
    for row in pl.read_parquet(synthetic / "gaps.parquet").to_dicts():
        if row["seed"] is None and row["metric"] == "same_prediction":
            counted[row["split"], row["verdict"]] += 1
    assert {(s, v): n for s, some in said["verdicts"].items() for v, n in some.items()} == counted
    kinds = ("holds", "illusions", "wrong", "open", "untestable")
    assert sum(said["counts"][kind] for kind in kinds) == said["counts"]["proxies"] == 14
    assert said["headline"].startswith("Of 14 simplified views, ")
    assert said["claims"][:2] == [
        {"id": "C1", "status": "holds"},
        {"id": "C2", "status": "does not hold"},
    ]
    assert said["splits"][0] == {"name": "iid", "role": "iid", "sequences": 2000, "scored": 9900}
    assert said["specification"]["thresholds"]["tolerance"] == 0.02
    assert said["specification"]["versions"]["torch"] == "2.13.0"


def test_of_thousands_of_views_the_most_telling_are_shown(tmp_path: Path) -> None:
    cells = {f"svd(rank={n})@0.*.key": {"near": FAITHFUL, "far": FAITHFUL} for n in range(1, 2001)}
    cells |= {f"svd(rank={n})@1.*.key": {"near": UNFAITHFUL} for n in range(1, 2001)}
    worst = {"kmeans(clusters=7)@1.*.key": {"near": UNDECIDED, "far": UNDER}}
    worst |= {"onehot@0.*.pattern": {"near": OVER, "far": FAITHFUL}}
    run = write(tmp_path / "run", {**cells, **worst}, SPEC)
    said = outline(Findings(run, SPEC))
    assert len(json.dumps(said, allow_nan=False)) < 24_000
    assert said["shown"] == {"views": MOST_CELLS // 3, "of": 4002}
    assert {view["simplification"] for view in said["views"][:2]} == {*worst}
    assert said["verdicts"]["near"] == {FAITHFUL: 2000, OVER: 1, UNFAITHFUL: 2000, UNDECIDED: 1}
    assert said["counts"]["proxies"] == 4002 and said["counts"]["illusions"] == 2
    (cell,) = (v["splits"] for v in said["views"] if v["simplification"].startswith("kmeans"))
    assert cell["near"]["needed"] == 1200 and "needed" not in cell["far"]
    assert said["specification"]["specs"] == 499 and len(said["specification"]["simplify"]) == 20
    assert said["specification"]["task"] == {"name": "dyck", "k": 3}


def test_what_has_no_interval_is_null(tmp_path: Path) -> None:
    run = write(tmp_path / "run", {"svd(rank=2)@0.*.key": {"near": FAITHFUL}}, SPEC)
    table = pl.read_parquet(run / "results.parquet")
    nothing = pl.lit(None, pl.Float64)
    table.with_columns(low=nothing, high=nothing).write_parquet(run / "results.parquet")
    said = outline(Findings(run, SPEC))
    assert said["views"][0]["splits"]["iid"]["same_prediction"] == [0.96, None, None]
    assert said["report"] is None and said["claims"] == []


def test_what_the_documentation_shows_runs(
    smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "tables.md").read_text("utf-8")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "smoke").symlink_to(smoke_run)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "tables.md", "exec"), {})
    assert pl.read_csv("shares.csv").equals(load_run(smoke_run).table())
    said = load_run(smoke_run).summary()
    for key in (*said, *said["counts"]):
        assert f"`{key}`" in text, key
