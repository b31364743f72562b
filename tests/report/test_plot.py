"""The report's charts as Altair charts: `run.plot`."""

import json
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import pytest

import anamorph as am
from anamorph.analysis.findings import read
from anamorph.report.charts.sections import MAKERS
from anamorph.report.plot import MOST_ROWS, Plots
from synthetic_run import NASTY, make_run


@pytest.fixture(scope="module")
def plot(tmp_path_factory: pytest.TempPathFactory) -> Plots:
    return Plots(read(make_run(tmp_path_factory.mktemp("plots") / "run")))


def spec(chart: Any) -> dict[str, Any]:
    return dict(json.loads(chart.to_json()))


def rows(chart: Any) -> list[dict[str, Any]]:
    return list(spec(chart)["datasets"]["table"])


def bound(chart: Any) -> set[str]:
    return {p["name"] for p in spec(chart)["params"] if isinstance(p.get("bind"), dict)}


def test_a_run_has_its_charts(smoke_run: Path) -> None:
    run = am.load_run(smoke_run)
    chart = run.plot.verdicts()
    assert isinstance(chart, alt.VConcatChart)
    shown = {(row["proxy"], row["split"]): row["value"] for row in rows(chart)}
    same = run.results.filter(pl.col("facet").is_null(), metric="same_prediction", seed=0)
    views = same.filter(pl.col("method") != "identity").select("simplification", "split", "value")
    found = {(name, split.replace("_", " ")): value for name, split, value in views.iter_rows()}
    assert shown == pytest.approx(found, abs=1e-4) and len(found) == 7 * 6


def test_what_is_chosen_is_drawn_alone(plot: Plots) -> None:
    chart = plot.faithfulness(split=["iid", "unseen_depth"], metric="output_jsd")
    assert {row["split"] for row in rows(chart)} == {"iid", "unseen depth"}
    assert {row["metric"] for row in rows(chart)} == {"output_jsd"}
    assert not bound(chart)
    whole, text = spec(plot.faithfulness()), json.dumps(spec(chart))
    assert '["iid", "unseen depth"]' in text and "seen structure" not in text.replace("unseen", "")
    assert bound(plot.faithfulness()) == {"metric"} and "output_jsd" in json.dumps(whole)
    # the colours of all splits, so that a split has the same in every chart
    assert '"range": ["#2b2b2b", "#d55e00"]' in text
    assert "var(--" not in text


def test_options_go_by_what_they_stand_for_and_by_their_texts(plot: Plots) -> None:
    onehot = "onehot@1.*.pattern"
    by_spec, by_text = (
        plot.attention(0, head="1.0", proxy=name)
        for name in (onehot, "one-hot attention · layer 1 pattern")
    )
    assert rows(by_spec) == rows(by_text) != []
    assert {row["who"] for row in rows(by_spec)} == {"model", "proxy"}
    assert {row["sentence"] for row in rows(by_spec)} == {"s0"}
    family = plot.who_is_right(family=onehot, split="unseen_depth")
    assert {row["family"] for row in rows(family)} == {"one-hot attention · layer 1 pattern"}
    assert len(rows(family)) == 5
    total = sum(row["value"] for row in rows(family))
    assert total == pytest.approx(1, abs=1e-4)


def test_a_scatter_of_one_site(plot: Plots) -> None:
    chart = plot.scatter(site="1.0.key", colour="token", split="iid")
    assert {(row["site"], row["split"]) for row in rows(chart)} == {("1.0.key", "iid")}
    assert any(NASTY in row["token"] for row in rows(plot.scatter(site="1.0.key")))


def test_a_gap_is_that_of_the_table(plot: Plots) -> None:
    drawn = {(r["proxy"], r["split"]): r["gap"] for r in rows(plot.gap(metric="same_prediction"))}
    found = plot._run
    for row in found.judged.iter_rows(named=True):
        where = found.label(row["simplification"]), row["split"].replace("_", " ")
        assert drawn[where] == pytest.approx(row["gap"], rel=1e-4)


def test_every_chart_fits_a_notebook_and_is_valid(plot: Plots) -> None:
    for name in MAKERS:
        if name in ("heads_size", "heads_gap", "heads_scores"):
            continue
        assert len(rows(plot.figure(name))) <= MOST_ROWS


@pytest.mark.parametrize("kind", ["png", "svg", "pdf", "html"])
def test_charts_can_be_saved(plot: Plots, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"chart.{kind}"
    plot.gap(split="unseen_depth", metric="same_prediction").save(str(path))
    begins = {"png": b"\x89PNG", "svg": b"<svg", "pdf": b"%PDF", "html": b"<!DOCTYPE html>"}
    assert path.read_bytes().lstrip().startswith(begins[kind]) and path.stat().st_size > 4000


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda p: p.faithfulness(split="deep"), "has no split 'deep'; it has: iid, seen_str"),
        (lambda p: p.faithfulness(split=[]), "has no split ''; it has: iid"),
        (lambda p: p.gap(split="iid"), "'gaps' has no split 'iid'; it has: seen_structure"),
        (lambda p: p.gap(metric="accuracy"), "no metric 'accuracy' in this chart; there are: same"),
        (lambda p: p.attention(99), "There is no sentence 's99' in this chart; there are: iid, "),
        (lambda p: p.attention(proxy="svd"), "no proxy 'svd' in this chart; there are: .*onehot@1"),
        (lambda p: p.scatter(colour="red"), "no colouring 'red' in this chart; there are: depth;"),
        (lambda p: p.figure("gap"), "There is no figure 'gap'; there are: verdicts, heads_size"),
        (lambda p: p.figure("heads_gap"), "no data for the figure 'heads_gap'. `run.plot` lists"),
        (lambda p: p.figure("verdicts", size="4"), "'verdicts' has no menu 'size'; it has: none"),
        (lambda p: p.figure("attention", "iid"), "'attention' is not drawn by split"),
    ],
)
def test_what_is_not_there_is_an_error_that_lists_what_is(
    plot: Plots, call: Any, says: str
) -> None:
    with pytest.raises(am.AnamorphError, match=says):
        call(plot)


def test_it_lists_its_charts(plot: Plots) -> None:
    lines = repr(plot).splitlines()
    assert lines[0] == "Charts" and lines[1].split() == ["name", "shows", "menus"]
    named = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in lines[2:-1]}
    assert named["attention"] == "sentence, proxy, head" and "heads_gap" not in named
