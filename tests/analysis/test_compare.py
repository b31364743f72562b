"""What differs between two runs: numbers against plain loops, and what is refused."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

import anamorph as am
from anamorph.errors import RunFolderError
from anamorph.runs.sums import SplitSums
from compared_runs import CONTROL, OTHER, SPLITS, VIEW, Sentence, agreeing, data, write

GIVEN = data(60)
GOOD, BAD = dict.fromkeys(SPLITS, 0.95), {"iid": 0.95, "near": 0.9, "far": 0.4}
AGREE = {VIEW: agreeing(GIVEN, GOOD, 1), OTHER: agreeing(GIVEN, BAD, 2)}
AGREE |= {CONTROL: agreeing(GIVEN, BAD, 3)}
WORSE = AGREE | {VIEW: agreeing(GIVEN, BAD, 4), CONTROL: agreeing(GIVEN, GOOD, 5)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model of each of two weights; two models of the same, in the other order."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        "a": write(folder / "a", GIVEN, {0: AGREE}),
        "b": write(folder / "b", GIVEN, {0: WORSE}, weights="x"),
        "two": write(folder / "two", GIVEN, {0: AGREE, 1: WORSE}),
        "turned": write(folder / "turned", GIVEN, {0: WORSE, 1: AGREE}, weights="x"),
    }


def row(table: pl.DataFrame, proxy: str, split: str, metric: str = "same_prediction") -> dict:  # type: ignore[type-arg]
    return table.row(
        by_predicate=(pl.col("simplification") == proxy)
        & (pl.col("split") == split)
        & (pl.col("metric") == metric),
        named=True,
    )


def test_a_model_against_itself(runs: dict[str, Path], tmp_path: Path) -> None:
    again = write(tmp_path / "again", GIVEN, {0: AGREE})
    for found in (am.compare(runs["a"], runs["a"]), am.compare(runs["a"], again)):
        every = found.differences
        assert found.headline.startswith("Nothing differs: all ")
        assert "equal to the last digit" in found.headline
        assert set(every["interval"]) == {"exact"} and not every["differs"].any()
        for name in ("difference", "low", "high"):
            assert (every[name] == 0).all()
        assert every["p_value"].null_count() == len(every)
        assert not found.verdicts["changed"].any() and not found.notes


def test_equal_numbers_of_other_weights_are_not_exact(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    """The sequences that were seen do not show that none differs."""
    other = write(tmp_path / "other", GIVEN, {0: AGREE}, weights="x")
    found = am.compare(runs["a"], other)
    same = row(found.values, VIEW, "far")
    assert same["interval"] == "paired" and same["difference"] == 0
    assert same["low"] < -0.005 and same["high"] > 0.005 and same["p_value"] == 1
    assert found.headline.startswith("Nothing differs") and "digit" not in found.headline


def test_numbers_are_those_of_plain_loops(runs: dict[str, Path]) -> None:
    found = am.compare(runs["a"], runs["b"])
    scored = np.array([s.scored for s in GIVEN["far"]])
    means = {
        (split, side): agree[VIEW][split].sum() / scored.sum()
        for split in SPLITS
        for side, agree in (("a", AGREE), ("b", WORSE))
    }
    value, gap = (row(table, VIEW, "far") for table in (found.values, found.gaps))
    assert value["a"] == pytest.approx(means["far", "a"])
    assert value["difference"] == pytest.approx(means["far", "b"] - means["far", "a"])
    gaps = [means["iid", side] - means["far", side] for side in "ab"]
    assert (gap["a"], gap["b"]) == pytest.approx(gaps)
    assert gap["difference"] == pytest.approx(gaps[1] - gaps[0])
    assert value["differs"] and gap["differs"] and value["interval"] == "paired"
    d = (WORSE[VIEW]["far"] - AGREE[VIEW]["far"]) / scored.mean()
    error = (d - value["difference"] * scored / scored.mean()).std() / np.sqrt(len(d))
    assert 1 < (value["high"] - value["low"]) / (2 * 1.96 * error) < 1.2
    assert value["low"] < value["difference"] < value["high"]
    assert row(found.values, OTHER, "far")["difference"] == 0


def test_gaps_of_a_metric_that_is_better_lower_have_their_sign(runs: dict[str, Path]) -> None:
    found = am.compare(runs["a"], runs["b"])
    same, kl = (row(found.gaps, VIEW, "far", m) for m in ("same_prediction", "output_kl"))
    assert kl["difference"] == pytest.approx(same["difference"] / 4)  # see compared_runs
    assert 0 < kl["low"] < kl["difference"] < kl["high"]


def test_p_values_are_corrected_among_the_views_of_a_metric(runs: dict[str, Path]) -> None:
    values = am.compare(runs["a"], runs["b"]).values
    for metric in ("same_prediction", "output_kl"):
        for control in (True, False):
            some = values.filter(pl.col("control").is_not_null() == control, metric=metric)
            corrected = stats.false_discovery_control(some["p_value"], method="bh")
            np.testing.assert_allclose(some["p_corrected"], corrected, atol=1e-12)
            assert some["differs"].to_list() == [p < 0.05 for p in corrected]


def test_verdicts_that_changed(runs: dict[str, Path]) -> None:
    found = am.compare(runs["a"], runs["b"])
    changed = found.verdicts.filter("changed", pl.col("control").is_null())
    assert set(changed["simplification"]) == {VIEW} and "far" in changed["split"]
    assert row(found.verdicts.with_columns(metric=pl.lit("")), VIEW, "far", "")["b"].startswith(
        "illusion"
    )
    assert f"{len(changed)} verdict" in found.headline
    assert VIEW in found.headline and CONTROL not in found.headline


def test_two_seeds_and_two_proxies_of_one_run(runs: dict[str, Path]) -> None:
    run = am.load_run(runs["two"])
    seeds = am.compare(run.seed(0), run.seed(1))
    other = am.compare(runs["a"], runs["b"])
    columns = ["simplification", "split", "metric", "a", "b", "low", "high"]
    assert seeds.values.select(columns).equals(other.values.select(columns))
    beside = am.compare(runs["a"], runs["a"], proxies={OTHER: VIEW})
    value = row(beside.values, OTHER, "far")
    assert value["simplification_b"] == VIEW and value["b"] > value["a"] and value["differs"]
    text = am.compare(runs["a"], runs["a"], proxies=[f"{OTHER} = {VIEW.replace('2', ' 2')}"])
    assert text.values.equals(beside.values)


def test_over_models_of_the_same_seeds(runs: dict[str, Path]) -> None:
    """What one model loses the other gains: the mean says nothing, and the models' spread all."""
    found = am.compare(runs["two"], runs["turned"])
    value = row(found.values, VIEW, "far")
    of_one = row(am.compare(runs["two"] / "seed-0", runs["turned"] / "seed-0").values, VIEW, "far")
    assert value["difference"] == pytest.approx(0)
    assert value["least"] == pytest.approx(of_one["difference"]) == pytest.approx(-value["most"])
    assert (value["low"], value["high"]) == (-1, 1)  # Student's t of one degree of freedom
    assert "means over 2 models" in " ".join(found.notes)
    with pytest.raises(am.AnamorphError, match=r"seeds 0 and 1, and .* of 0; two models, one of"):
        am.compare(runs["two"], runs["a"])
    assert len(am.compare(runs["two"], runs["a"], unpaired=True).values)


def test_sequences_in_another_order_are_the_same(runs: dict[str, Path], tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(60)
    given = {split: [some[n] for n in order] for split, some in GIVEN.items()}
    turned = {
        proxy: {split: numbers[order] for split, numbers in splits.items()}
        for proxy, splits in WORSE.items()
    }
    other = write(tmp_path / "other", given, {0: turned}, weights="x")
    columns = ["a", "b", "low", "high", "p_value"]
    found, expected = (am.compare(runs["a"], run).values for run in (other, runs["b"]))
    np.testing.assert_allclose(
        found.select(columns).to_numpy(), expected.select(columns).to_numpy(), atol=1e-12
    )


def test_other_data_are_refused_by_name(runs: dict[str, Path], tmp_path: Path) -> None:
    given = dict(GIVEN)
    given["far"] = [*GIVEN["far"][:12], *(Sentence(f"new-{n}", 2) for n in range(88))]
    agree = {VIEW: agreeing(given, GOOD, 1)}
    other = write(tmp_path / "other", given, {0: agree})
    message = r"other sequences than .*a on 'far' \(12 of 60 and 100 are shared\)"
    with pytest.raises(am.AnamorphError, match=message):
        am.compare(runs["a"], other)
    found = am.compare(runs["a"], other, unpaired=True)
    kinds = found.values.select("split", "interval").unique()
    assert dict(kinds.filter(pl.col("interval") != "exact").iter_rows()) == {
        "iid": "paired",
        "near": "paired",
        "far": "unpaired",
    }
    assert any("'far'" in note for note in found.notes)
    assert set(found.gaps.filter(split="far")["interval"]) == {"unpaired"}


def test_runs_that_do_not_tell_their_sequences(runs: dict[str, Path], tmp_path: Path) -> None:
    old = write(tmp_path / "old", GIVEN, {0: WORSE}, weights="x")
    for file in old.glob("sequences/*"):
        file.unlink()
    with pytest.raises(am.AnamorphError, match=r"old does not tell .*delete results\.parquet"):
        am.compare(runs["a"], old)
    paired, apart = am.compare(runs["a"], runs["b"]), am.compare(runs["a"], old, unpaired=True)
    of_paired, of_apart = (row(found.values, VIEW, "far") for found in (paired, apart))
    assert of_paired["difference"] == pytest.approx(of_apart["difference"])
    assert of_apart["interval"] == "unpaired" and of_apart["differs"]


def test_cells_that_stopped_early_have_no_interval(runs: dict[str, Path], tmp_path: Path) -> None:
    audit = {"audit": {"until": 0.05}}
    stopped = write(tmp_path / "stopped", GIVEN, {0: WORSE}, weights="x", spec=audit)
    found = am.compare(runs["a"], stopped)
    every = found.differences
    assert every["interval"].null_count() == len(every) and not every["differs"].any()
    assert row(found.values, VIEW, "far")["difference"] < -0.3
    assert found.headline.startswith("No interval can be given for what differs; ")
    assert "stopped early (--until)" in found.notes[0]
    assert found.notes[-1].endswith("stopped: audit.until None → 0.05.")


def test_what_only_one_has_is_told(runs: dict[str, Path], tmp_path: Path) -> None:
    fewer = {split: GIVEN[split] for split in ("iid", "far")}
    other = write(tmp_path / "other", fewer, {0: AGREE}, spec={"anamorph": "2"})
    found = am.compare(runs["a"], other)
    assert set(found.values["split"]) == {"iid", "far"}
    assert found.notes[0].endswith("a has the splits near.")
    assert "Of two versions of anamorph" in found.notes[1]


def test_runs_without_a_split_to_compare_with(tmp_path: Path) -> None:
    given = {"iid": GIVEN["iid"]}
    a, b = (
        write(tmp_path / name, given, {0: {VIEW: agree[VIEW]}}, weights=name)
        for name, agree in (("a", AGREE), ("b", WORSE))
    )
    found = am.compare(a, b)
    assert found.gaps.is_empty() and found.verdicts.is_empty() and len(found.values)
    assert "gaps" not in found.headline and "2 values of same prediction" in found.headline


def test_what_cannot_be_compared(runs: dict[str, Path], tmp_path: Path) -> None:
    run, model = runs["a"], tmp_path / "model.safetensors"
    model.touch()
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").touch()
    for path in (model, tmp_path / "hf"):
        with pytest.raises(am.AnamorphError, match=r"is a model, .* --simplify 'model\("):
            am.compare(path, run)
    (run / "seed-0" / "model.safetensors").touch()
    with pytest.raises(am.AnamorphError, match=r"model of a run; give its folder, .*seed-0\."):
        am.compare(run / "seed-0" / "model.safetensors", run)
    with pytest.raises(am.AnamorphError, match="has no model of seed 7; it has 0"):
        am.compare(run, run / "seed-7")
    with pytest.raises(am.AnamorphError, match=r"has no proxy nothing@1\.\*\.key. .* has: svd"):
        am.compare(run, run, proxies={"nothing@1.*.key": VIEW})
    with pytest.raises(am.AnamorphError, match="--proxy must be SPEC=SPEC"):
        am.compare(run, run, proxies=[VIEW])
    with pytest.raises(am.AnamorphError, match="holds no run"):
        am.compare(run, tmp_path / "nowhere")


def test_a_run_that_is_not_finished_or_damaged(runs: dict[str, Path], tmp_path: Path) -> None:
    run = write(tmp_path / "run", GIVEN, {0: AGREE})
    work = run / "seed-0" / "works" / "far-0000.parquet"
    kept = work.read_bytes()
    work.write_bytes(b"no table")
    with pytest.raises(RunFolderError, match=r"Cannot read the sums in .*far-0000\.parquet"):
        am.compare(runs["b"], run)
    work.unlink()
    with pytest.raises(RunFolderError, match=r"has no sums of identity on 'far'\. Give the com"):
        am.compare(runs["b"], run)
    work.write_bytes(kept)
    (run / "gaps.parquet").unlink()
    with pytest.raises(RunFolderError, match="the run is not finished"):
        am.compare(runs["b"], run)
    (run / "spec.json").write_text(json.dumps({"seeds": [0]}))
    with pytest.raises(RunFolderError, match="does not describe a run"):
        am.compare(runs["b"], run)


def test_a_split_whose_files_begin_like_those_of_another(tmp_path: Path) -> None:
    """Works of iid-0000 are not those of iid: `iid-0000-0000.parquet` beside `iid-0000.parquet`."""
    given = {**data(30), "iid-0000": data(30, "other")["far"]}
    share = {"iid": 0.9, "near": 0.9, "far": 0.9, "iid-0000": 0.3}
    agree = agreeing(given, share, 3)
    run = am.load_run(write(tmp_path / "run", given, {0: {VIEW: agree}}))
    for split in given:
        sums = SplitSums(run, 0, split).of(VIEW)["same_prediction"]
        assert sums.to_list() == agree[split].tolist()
        worst = run.worst(VIEW, split, n=1, metric="same_prediction", by="sum")
        assert worst["value"].item() == agree[split].min()
