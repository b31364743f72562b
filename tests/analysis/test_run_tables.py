"""The tables of a run for others to go on with, against its Parquet files by plain loops."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

import anamorph as am
from anamorph.analysis.tables import tidy
from anamorph.faithfulness.gaps import FAITHFUL, UNDECIDED, UNDER
from anamorph.report.opened import OpenedRun
from controlled_run import make_controlled
from judged_run import write
from synthetic_run import make_run

SPEC = {"model": {"layers": 2, "heads": 1}, "training": None}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> OpenedRun:
    """Two models, 14 views, six splits."""
    path = make_run(tmp_path_factory.mktemp("runs") / "run")
    return OpenedRun(path, {"seeds": [0, 1], **SPEC})


def rows(path: Path, name: str) -> list[dict[str, Any]]:
    return pl.read_parquet(path / f"{name}.parquet").to_dicts()


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("metric", ["same_prediction", "output_kl"])
def test_a_column_a_split(run: OpenedRun, metric: str, seed: int | None) -> None:
    expected: dict[str, dict[str, float]] = {}
    for row in rows(run.path, "results"):
        whole = row["facet"] is None and row["method"] != "identity"
        if whole and (row["metric"], row["seed"]) == (metric, seed):
            expected.setdefault(row["simplification"], {})[row["split"]] = row["value"]
    found = run.table(metric, seed=seed)
    assert found.columns == ["simplification", "iid", *(s for s in found.columns[2:] if s != "iid")]
    assert len(found.columns) == 7
    assert {name: values for name, *values in found.rows()} == {
        name: [values[split] for split in found.columns[1:]] for name, values in expected.items()
    }
    assert found["simplification"].to_list() == list(expected)


def test_a_number_a_row_with_its_gap(run: OpenedRun) -> None:
    gaps = {
        (row["simplification"], row["split"]): row
        for row in rows(run.path, "gaps")
        if row["seed"] is None and row["metric"] == "same_prediction"
    }
    found = run.table(long=True).to_dicts()
    assert len(found) == 14 * 6
    for row in found:
        if row["split"] == "iid":
            assert row["gap"] is row["gap_low"] is row["verdict"] is None
            continue
        gap = gaps[row["simplification"], row["split"]]
        assert row["value"] == gap["ood"]
        for name in ("gap", "verdict", "needed", "p_value", "reference"):
            assert row[name] == gap[name]
        assert (row["gap_low"], row["gap_high"]) == (gap["low"], gap["high"])
        assert row["low"] < row["value"] < row["high"] or row["value"] in (0, 1)


def test_levels_of_a_facet_are_rows(run: OpenedRun) -> None:
    expected = {
        (row["simplification"], row["level"], row["split"]): row["value"]
        for row in rows(run.path, "results")
        if row["facet"] == "depth" and row["seed"] is None and row["method"] != "identity"
        if row["metric"] == "same_prediction"
    }
    found = run.table(facet="depth")
    assert found.columns[:3] == ["simplification", "level", "iid"]
    values = {
        (row["simplification"], row["level"], split): row[split]
        for row in found.to_dicts()
        for split in found.columns[2:]
        if row[split] is not None
    }
    assert values == expected
    assert found.filter(level="20")["iid"].null_count() == 14  # there is no such depth
    long = run.table(facet="depth", long=True)
    assert len(long) == len(expected) and "gap" not in long.columns


def test_whom_a_metric_is_about(run: OpenedRun) -> None:
    assert run.table("model_accuracy")["simplification"].to_list() == ["identity"]
    proxies = run.table("proxy_accuracy")["simplification"].to_list()
    assert proxies[0] == "identity" and len(proxies) == 15
    assert "identity" not in run.table("output_jsd")["simplification"]


def test_controls_are_there_if_asked_for(tmp_path: Path) -> None:
    path = make_controlled(tmp_path / "run")
    run = OpenedRun(path, {"seeds": [0], **SPEC})
    controls = {r["simplification"] for r in rows(path, "results") if r["control"] is not None}
    assert len(controls) == 18
    for table in (run.table, run.verdicts):
        without, names = table(), table(controls=True)["simplification"]
        assert not controls & {*without["simplification"]} and controls <= {*names}
    assert controls <= {*tidy(run)["simplification"]}


def test_verdicts(tmp_path: Path) -> None:
    cells = {
        "svd(rank=2)@0.*.key": {"near": FAITHFUL, "far": UNDER},
        "svd(rank=4)@0.*.key": {"near": UNDECIDED, "far": FAITHFUL},
    }
    run = OpenedRun(write(tmp_path / "run", cells), {"seeds": [0], **SPEC})
    found = run.verdicts()
    assert {
        (row["simplification"], row["split"]): (row["verdict"], row["needed"])
        for row in found.to_dicts()
    } == {
        ("svd(rank=2)@0.*.key", "near"): (FAITHFUL, None),
        ("svd(rank=2)@0.*.key", "far"): (UNDER, None),
        ("svd(rank=4)@0.*.key", "near"): (UNDECIDED, 1200),
        ("svd(rank=4)@0.*.key", "far"): (FAITHFUL, None),
    }
    assert found["size"].to_list() == [2, 4] * 2 and set(found["size_name"]) == {"rank"}
    assert found.columns[-7:] == ["gap", "low", "high", "low_all", "high_all", "p_value", "needed"]
    assert run.verdicts(seed=0).equals(found)


def test_all_numbers_of_whole_splits(run: OpenedRun) -> None:
    whole = [row for row in rows(run.path, "results") if row["facet"] is None]
    found = tidy(run).to_dicts()
    assert len(found) == len(whole) > 2 * 15 * 6 * 12
    assert [row["value"] for row in found] == [row["value"] for row in whole]
    judged = sum(row["verdict"] is not None for row in found)
    assert judged == sum(row["verdict"] is not None for row in rows(run.path, "gaps")) == 3 * 14 * 5


def test_of_one_model_all_models_are_said_once(tmp_path: Path) -> None:
    path = write(tmp_path / "run", {"svd(rank=2)@0.*.key": {"near": FAITHFUL}})
    found = tidy(OpenedRun(path, {"seeds": [0], **SPEC}))
    assert found["seed"].null_count() == len(found) == 3 * (3 + 1)  # splits · numbers


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"metric": "same_predictions"}, "no metric 'same_predictions' in this run; it has same_p"),
        ({"metric": "same_predictions"}, r"Did you mean same_prediction\?"),
        ({"facet": "dept"}, r"no facet 'dept' .* depth, distance, length\. Did you mean depth\?"),
        ({"facet": "depth", "metric": "model_accuracy_per_sequence"}, "by facet 'depth'.* none"),
        ({"seed": 7}, "has no seed 7; it has 0, 1"),
    ],
)
def test_what_is_not_there_is_refused(run: OpenedRun, how: dict[str, Any], words: str) -> None:
    with pytest.raises(am.AnamorphError, match=words):
        run.table(**how)
    with pytest.raises(am.AnamorphError, match="has no seed 7"):
        run.verdicts(seed=7)
