"""Runs along an axis: which it is, the table against those of the runs, and what is said."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import false_discovery_control, norm

import anamorph as am
from along_runs import VIEW, write_run
from anamorph.analysis.along_words import changes, headline, notes, path
from anamorph.errors import AnamorphError, RunFolderError

STEPS = (100, 300, 500)
FALLS = {  # of each view and split along STEPS
    (2, "near"): (0.0, 0.0, 0.0),
    (2, "far"): (0.0, 0.1, 0.3),
    (4, "near"): (0.0, 0.005, 0.03),
    (4, "far"): (0.3, 0.3, 0.0),
}


def steps(value: int) -> dict[str, Any]:
    return {"training": {"steps": value}}


def three(folder: Path, **more: Any) -> list[Path]:
    return [
        write_run(
            folder / f"s{value}",
            steps(value),
            {key: falls[place] for key, falls in FALLS.items()},
            **{"half": 0.015} | more,
        )
        for place, value in enumerate(STEPS)
    ]


def test_the_table_has_the_numbers_of_the_runs(tmp_path: Path) -> None:
    runs = three(tmp_path)
    found = am.along([runs[2], runs[0], runs[1]])  # in whatever order
    assert found.axis.name == "training.steps" and found.axis.values == [100, 300, 500]
    table = found.table
    assert len(table) == 3 * 2 * 3 * 2  # values, views, splits, metrics
    for run, value in zip(runs, STEPS, strict=True):
        gaps = pl.read_parquet(run / "gaps.parquet").filter(pl.col("seed").is_null())
        results = pl.read_parquet(run / "results.parquet").filter(pl.col("seed").is_null())
        ours = table.filter(at=value, metric="same_prediction")
        for row in gaps.iter_rows(named=True):
            key = {"simplification": row["simplification"], "split": row["split"]}
            (mine,) = ours.filter(**key).to_dicts()
            assert (mine["gap"], mine["gap_low"], mine["gap_high"], mine["verdict"]) == (
                row["gap"], row["low"], row["high"], row["verdict"],
            )  # fmt: skip
            (number,) = results.filter(metric="same_prediction", **key).to_dicts()
            assert (mine["value"], mine["low"]) == (number["value"], number["low"])
            assert (mine["accuracy"], mine["accuracy_reference"]) == pytest.approx((0.87, 0.97))
            assert mine["run"] == str(run) and mine["seed"] is None


def test_a_change_of_a_verdict_is_said_with_its_place(tmp_path: Path) -> None:
    found = am.along(three(tmp_path))
    said = {change.title.rpartition(" ")[2]: " ".join(change.texts) for change in changes(found)}
    assert "On near: faithful throughout." in said["2"]
    assert "On far: faithful at 100, illusion (under-generalizes) from 300." in said["2"]
    assert "On near: faithful up to 300, undecided at 500." in said["4"]
    assert "On far: illusion (under-generalizes) up to 300, faithful at 500." in said["4"]
    assert "The gap on far grows by 30.0 points" in said["2"]
    assert "The gap on far shrinks by 30.0 points" in said["4"]
    assert headline(found) == (
        "Along training.steps from 100 to 500 (3 values), the verdict changes for 3 of 4 views and "
        "splits. By more than noise, the gap grows for 2 and shrinks for 1 of the 4 that were "
        "tested."
    )
    assert any("one model at each value" in note for note in notes(found))


def test_trends_are_corrected_over_all_views_and_splits(tmp_path: Path) -> None:
    """Against the difference of the ends, as the middle of three does not count, and SciPy."""
    found = am.along(three(tmp_path)).trends
    changes_ = np.array([FALLS[2, "near"], FALLS[4, "near"], FALLS[2, "far"], FALLS[4, "far"]])
    apart = changes_[:, 2] - changes_[:, 0]
    keys = [(VIEW.format(rank), split) for split in ("near", "far") for rank in (2, 4)]
    assert list(found.select("simplification", "split").iter_rows()) == keys
    assert found["change"].to_list() == pytest.approx(apart)
    assert (found["high"] - found["change"]).to_list() == pytest.approx([0.015 * 2**0.5] * 4)
    raw = 2 * norm.sf(np.abs(apart) / (0.015 * 2**0.5 / norm.ppf(0.975)))
    assert found["p_value"].to_list() == pytest.approx(raw)
    assert found["p_corrected"].to_list() == pytest.approx(false_discovery_control(raw))
    assert found["differs"].to_list() == [False, True, True, True]


def test_models_that_have_not_learnt_carry_no_trend(tmp_path: Path) -> None:
    runs = three(tmp_path)
    shutil.rmtree(runs[0])
    write_run(runs[0], steps(100), dict.fromkeys(FALLS, 0.5), accuracy=0.5)
    found = am.along(runs)
    row = found.trends.row(2, named=True)
    assert (row["tested"], row["first"], row["last"]) == (2, 300, 500)
    assert row["change"] == pytest.approx(0.2)
    assert row["verdicts"] == 1  # an illusion at both
    assert "The models have learnt the task at 2 of 3 values." in headline(found)
    (said,) = [c for c in changes(found) if c.title.endswith("rank 2")]
    assert "On far: not testable here at 100, illusion (under-generalizes) from 300." in said.texts


def test_seeds_are_an_axis_without_a_trend(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {}, {(2, "far"): 0.1}, seeds=(0, 1, 2))
    found = am.along(run)
    assert found.axis.name == "seed" and found.axis.values == [0, 1, 2]
    assert found.table["seed"].unique().sort().to_list() == [0, 1, 2]
    assert found.trends["p_value"].null_count() == 1
    assert "from 10.0 to 10.0 points" in changes(found)[0].texts[-1]
    assert repr(found) == "Along seed: 3 values, 1 views; .table and .trends"
    one = am.along([run / "seed-2", run / "seed-0"])
    assert [point.side.name for point in one.axis.points] == [
        str(run / f"seed-{seed}") for seed in (0, 2)
    ]
    assert one.axis.values == [0, 2]
    alone = [write_run(tmp_path / f"r{s}", {}, {(2, "far"): s / 10}, seeds=(s,)) for s in (0, 1)]
    found = am.along(alone)
    assert found.axis.name == "seed" and found.judged["gap"].to_list() == pytest.approx([0, 0.1])
    assert am.along(alone, axis="seed").axis.values == [0, 1]


def test_several_settings_need_a_name_and_the_others_stand_beside(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"{s}-{w}", steps(s) | {"model": {"width": w}}, {(2, "far"): w / 1000})
        for s in (100, 300)
        for w in (16, 32)
    ]
    with pytest.raises(AnamorphError) as caught:
        am.along(runs)
    assert "model.width (16, 32); training.steps (100, 300)" in str(caught.value)
    assert "--axis model.width" in str(caught.value)
    found = am.along(runs, axis="training.steps")
    assert found.table["rest"].unique().sort().to_list() == ["model.width 16", "model.width 32"]
    assert len(found.trends) == 2 and found.trends["values"].to_list() == [2, 2]
    with pytest.raises(AnamorphError, match=r"'training\.step'; did you mean 'training\.steps'"):
        am.along(runs, axis="training.step")
    # A setting that goes with the axis is told, and does not part the runs.
    found = am.along([runs[0], runs[3]], axis="training.steps")
    assert found.table["rest"].unique().to_list() == [""]
    assert "With training.steps, model.width differs too." in notes(found)


def test_what_cannot_be_looked_at_is_told(tmp_path: Path) -> None:
    falls = {(2, "far"): 0.1}
    a, b = (write_run(tmp_path / name, steps(100), falls) for name in "ab")
    with pytest.raises(AnamorphError, match="do not differ in any setting"):
        am.along([a, b])
    c = write_run(tmp_path / "c", steps(300), falls)
    with pytest.raises(AnamorphError, match=r"/b stand at the same place: both have .*steps 100"):
        am.along([a, b, c])
    other = write_run(tmp_path / "d", steps(500), {(8, "far"): 0.1})
    with pytest.raises(AnamorphError, match="No view stands at two values"):
        am.along([a, other])
    found = am.along([a, c, other])
    assert "3 views" not in " ".join(notes(found)) and "do not stand at every" in str(notes(found))
    with pytest.raises(AnamorphError, match="holds no run"):
        am.along([a, tmp_path])
    (c / "gaps.parquet").unlink()
    with pytest.raises(RunFolderError, match=r"gaps\.parquet"):
        am.along([a, c])


def test_given_models_stand_in_their_order_by_their_last_names(tmp_path: Path) -> None:
    def given(name: str, path: str, fall: float) -> Path:
        spec = {"training": None, "source": {"model": path, "length": 8, "simplify": ["x"]}}
        spec |= {"model": {"name": path, "width": len(path)}}  # which follows, and is no axis
        return write_run(tmp_path / name, spec, {(2, "far"): fall})

    runs = [given("b", "/m/ckpt-200", 0.2), given("a", "/m/ckpt-10", 0.0)]
    found = am.along(runs)
    assert found.axis.name == "model" and found.axis.values == ["ckpt-200", "ckpt-10"]
    assert found.trends["change"].to_list() == pytest.approx([-0.2])
    same = [given("c", "/m/1/final", 0.2), given("d", "/m/2/final", 0.0)]
    assert am.along(same).axis.values == ["/m/1/final", "/m/2/final"]


def test_a_verdict_that_goes_to_and_fro_is_counted() -> None:
    cells = [{"at": at, "verdict": "faithful" if at % 2 else "undecided"} for at in range(9)]
    assert path(cells) == (
        "undecided at 5 of 9 values, faithful at 4 of 9 values (it changes 8 times)"
    )
    assert path(cells[:1]) == "undecided"
    assert path(cells[:4]) == "undecided at 0, faithful at 1, undecided at 2, faithful at 3"
    long = [{"at": at, "verdict": "ab"[10 < at < 20]} for at in (1, 5, 12, 15, 20_000, 30_000)]
    assert path(long) == "a up to 5, b from 12 to 15, a from 20,000"


def test_other_data_are_told(tmp_path: Path) -> None:
    runs = [
        write_run(
            tmp_path / f"{n}",
            steps(n) | {"fingerprints": {"data": {"iid": "same", "far": f"{n}"}}},
            {(2, "far"): 0.0},
        )
        for n in (1, 2)
    ]
    assert "The sequences of far are not the same in all runs." in notes(am.along(runs))
