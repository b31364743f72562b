"""The page of single heads, on a run that is small enough to work out by hand."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.stats
from numpy.typing import NDArray

from anamorph.analysis import findings
from anamorph.analysis.findings import read
from anamorph.analysis.heads import Heads, _smallest, rows
from anamorph.report import page as page_module
from anamorph.report import render
from anamorph.report.charts import heads as charts_heads
from heads_run import SPLITS, write

QK, KEY, ONE_HOT = (
    "SVD · query, key",
    "SVD · key of shared key heads",
    "one-hot attention · pattern",
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write(tmp_path / "run")


@pytest.fixture
def heads(run: Path) -> Heads:
    found = read(run).by_head
    assert found is not None
    return found


@pytest.fixture
def no_stills(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "write_stills", lambda figures, folder, names: None)


def test_methods_are_told_apart_and_sizes_are_not(heads: Heads) -> None:
    assert heads.methods == [QK, KEY, ONE_HOT]
    assert heads.sizes == {
        (QK, 1): "rank 1", (QK, 4): "rank 4", (QK, 16): "rank 16", (KEY, 2): "rank 2",
        (ONE_HOT, None): "",
    }  # fmt: skip


def test_smallest_faithful_size(heads: Heads) -> None:
    found = {
        (method, f"{layer}.{head}", split): text
        for method, layer, head, split, text in heads.smallest.filter(least=0.99)
        .select("method", "layer", "head", "split", "text")
        .iter_rows()
    }
    assert found == {
        (QK, "1.3", "iid"): "4",  # 0.995, at least 0.991
        (QK, "1.3", "other_data"): "?",  # even rank 16 has 0.993, but perhaps only 0.985
        (QK, "1.0", "iid"): "4",  # rank 1 has 0.99, but perhaps only 0.97
        (QK, "1.0", "other_data"): "1",
        (KEY, "0.1", "iid"): "none",  # at most 0.95
        (KEY, "0.1", "other_data"): "none",
        (ONE_HOT, "0.2", "iid"): "?",  # has no size
        (ONE_HOT, "0.2", "other_data"): "none",
    }
    lower = heads.smallest.filter(method=QK, layer=1, head=3, split="iid")
    asked = dict(lower.select("least", "text").iter_rows())
    assert asked == {0.99: "4", 0.95: "4", 0.9: "1", 0.8: "1"}
    one_hot = heads.smallest.filter(method=ONE_HOT, split="iid")
    asked = dict(one_hot.select("least", "text").iter_rows())
    assert asked == {0.99: "?", 0.95: "yes", 0.9: "yes", 0.8: "yes"}
    tried = heads.smallest.filter(method=QK, layer=1, head=3, split="other_data", least=0.99)
    assert tried.select("size", "value", "low").row(0) == (None, 0.993, 0.985)


def cells(values: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]) -> Any:
    """[head, size] numbers as the table that smallest sizes are found in; sizes 1, 2, 4, ..."""
    head, size = (axis.ravel() for axis in np.indices(values.shape))
    keys = {"seed": 0, "method": "svd", "layer": 0, "head": head, "shared": False, "split": "iid"}
    numbers = {"value": values.ravel(), "low": low.ravel(), "high": high.ravel()}
    return pl.DataFrame(keys | {"role": "iid", "size": 2.0**size} | numbers)


def binomial(
    truth: Sequence[float], heads: int, positions: int = 800
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """[head, size] shares of independent positions, with their Clopper–Pearson intervals."""
    rng = np.random.default_rng(0)
    hits = rng.binomial(positions, truth, size=(heads, len(truth)))
    low = scipy.stats.beta.ppf(0.025, hits, positions - hits + 1)
    high = scipy.stats.beta.ppf(0.975, hits + 1, positions - hits)
    return hits / positions, np.nan_to_num(low, nan=0.0), np.nan_to_num(high, nan=1.0)


@pytest.mark.parametrize("truth", [(0.97, 0.98, 0.985, 0.988), (0.9899,) * 6])
def test_a_size_is_seldom_named_if_none_is_faithful(truth: tuple[float, ...]) -> None:
    found = _smallest(cells(*binomial(truth, heads=3000)), least=0.99)
    named = ~found["text"].is_in(["none", "?"])
    assert named.mean() <= 0.03  # 0.025, and what 3,000 heads may be off


def test_a_size_that_is_too_small_is_seldom_named() -> None:
    values, low, high = binomial((0.97, 0.985, 0.9899, 0.995, 0.9999), heads=3000)
    found = _smallest(cells(values, low, high), least=0.99)
    assert (found["size"] < 8).mean() <= 0.03
    assert (found["size"] >= 8).mean() > 0.9  # the largest size is found to be enough
    for head, size in found.select("head", "size").iter_rows():
        passed = None
        for place in range(4, -1, -1):
            if low[head, place] < 0.99:
                break
            passed = 2.0**place
        assert size == passed


def test_asked_is_for_what_half_of_the_heads_reach(heads: Heads) -> None:
    assert heads.least == 0.99  # two of four do
    fewer = heads.smallest.with_columns(
        text=pl.when(pl.col("least") > 0.9).then(pl.lit("none")).otherwise(pl.col("text"))
    )
    assert replace(heads, smallest=fewer).least == 0.9
    none = heads.smallest.with_columns(text=pl.lit("none"))
    assert replace(heads, smallest=none).least == 0.8


def test_largest_gap(heads: Heads) -> None:
    worst = {(r["method"], r["layer"], r["head"]): r for r in heads.largest.iter_rows(named=True)}
    assert len(worst) == 4
    found = worst[QK, 1, 3]
    assert (found["size"], found["split"]) == (1, "other_data")
    # The interval is that of all gaps at once: this one was picked.
    assert (found["gap"], found["low"], found["high"]) == pytest.approx((0.15, 0.12, 0.20))
    assert worst[QK, 1, 0]["gap"] == 0 and worst[QK, 1, 0]["size"] in (4, 16)  # -0.009 at 1
    assert worst[KEY, 0, 1]["gap"] == 0
    assert worst[ONE_HOT, 0, 2]["gap"] == pytest.approx(0.492)


def test_scores_of_key_heads_are_means_over_their_query_heads(heads: Heads) -> None:
    assert heads.scores is not None and heads.even is not None
    scores = {
        (r["method"], r["layer"], r["head"]): r["previous_token"]
        for r in heads.scores.iter_rows(named=True)
    }
    assert scores == {
        (QK, 1, 3): 0.9, (QK, 1, 0): 0.0, (ONE_HOT, 0, 2): 0.3,
        (KEY, 0, 1): pytest.approx(0.4),  # query heads 2 and 3
    }  # fmt: skip
    assert heads.even["previous_token"].to_list() == [0.25]


def test_rows_have_the_largest_gap_first(heads: Heads) -> None:
    first, second = rows(heads, QK, list(SPLITS))
    assert (first["name"], first["smallest"], first["size_text"]) == ("1.3", ["4", "?"], "rank 1")
    assert (second["name"], second["smallest"]) == ("1.0", ["4", "1"])
    assert first["previous_token"] == 0.9 and first["induction"] == pytest.approx(0.09)
    (only,) = rows(heads, ONE_HOT, list(SPLITS))
    assert only["positional"] is None and only["size_text"] == ""


def test_seeds_are_kept_apart(tmp_path: Path) -> None:
    heads = read(write(tmp_path / "run", seeds=(0, 1))).by_head
    assert heads is not None
    texts = heads.smallest.filter(method=QK, layer=1, head=0, split="iid", least=0.99)
    assert dict(texts.select("seed", "text").iter_rows()) == {0: "4", 1: "none"}


def test_the_page(run: Path, no_stills: None) -> None:
    page = render(run).read_text()
    assert 'href="#heads"' in page
    section = page[page.index('<section id="heads">') : page.index('<section id="faithfulness">')]
    assert re.findall(r"<h3>(.+?)</h3>", section) == [QK]
    assert re.findall(r"<summary>(.+?)</summary>", section) == [KEY, ONE_HOT]
    table = re.search(r'<table class="cells heads">.*?</table>', section, re.DOTALL)
    assert table
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table[0].split("<tr>")[3:]]
    assert cells[0] == [
        "1.3", "4", "?", "15.0", "12.0 to 20.0", "other data, rank\u00a01", "faithful",
        "0.90", "0.09", "0.18", "0.10",
    ]  # fmt: skip
    assert [row[0] for row in cells] == ["1.3", "1.0"]
    assert "means over 64 sequences of iid" in section
    assert "What this audit assumes" in page and "paper leaves open" not in page
    assert "for its neighbours too" in section and "“yes” stands for" in section
    figures = set(re.findall(r'data-spec="spec-(heads\w+)"', section))
    assert figures == {"heads_size", "heads_gap", "heads_scores"}


def test_figures(run: Path) -> None:
    content = read(run)
    size, gap, score = (
        make(content)
        for make in (charts_heads.smallest, charts_heads.gaps, charts_heads.against_scores)
    )
    assert size and gap and score
    for figure in (size, gap, score):
        assert figure.drawn.to_dict(validate=True) == figure.drawn.to_dict(validate=False)
    assert [choice.name for choice in gap.choices] == ["method", "seed", "at"]
    at = gap.data.filter(method="m0", layer=1, head=3)
    assert dict(at.select("at", "text").iter_rows()) == {
        "largest": "15", "rank 1": "15", "rank 4": "1.5", "rank 16": "0.6",
    }  # fmt: skip
    # A gap of 1.5 differs from zero by itself; of the largest, all gaps are taken into account.
    sure = {"largest": True, "rank 1": True, "rank 4": True, "rank 16": False}
    assert dict(at.select("at", "sure").iter_rows()) == sure
    lows = dict(at.select("at", "low").iter_rows())
    assert lows["rank 1"] == pytest.approx(0.14) and lows["largest"] == pytest.approx(0.12)
    levels = [x["text"] for x in size.still(method="m0")["datasets"]["table"]]
    assert sorted(levels) == ["1", "4", "4", "?"]
    levels = [
        x["text"]
        for x in size.still(method="m1", least=size.choices[2].codes[0.8])["datasets"]["table"]
    ]
    assert levels == ["2", "2"]  # not none
    shown = score.data.filter(method="m2", at="largest")
    assert shown["score"].to_list() == [
        "previous-token score",
        "induction score",
        "copying score",
    ]  # no fourth
    assert shown["even"].to_list() == [0.25, 0.025, 0.05]


def test_methods_without_sizes(run: Path, no_stills: None) -> None:
    for name in ("results", "gaps"):
        frame = pl.read_parquet(run / f"{name}.parquet")
        frame.filter(pl.col("size").is_null()).write_parquet(run / f"{name}.parquet")
    assert "“yes” stands for" in render(run).read_text()
    gap = charts_heads.gaps(read(run))
    assert gap and [x["text"] for x in gap.still()["datasets"]["table"]] == ["49"]


def test_long_tables_are_folded(run: Path, no_stills: None, monkeypatch: Any) -> None:
    monkeypatch.setattr(page_module, "MOST_HEADS", 1)
    page = render(run).read_text()
    assert "The other 1 heads" in page
    assert "the 1 heads with the largest gaps, of 2" in page


def test_families_beyond_what_a_reader_can_take(
    run: Path, no_stills: None, monkeypatch: Any
) -> None:
    content = read(run)
    assert len(content.families) == 5 and content.telling_families == content.families
    monkeypatch.setattr(findings, "MOST_FAMILIES", 2)
    monkeypatch.setattr(page_module, "MOST_FAMILIES", 2)
    page = render(run).read_text()
    assert "Shown are 2 of 5 families of proxies; the table has all." in page
    assert page.count("The other families of proxies (3)") == 1
    assert (
        len(re.findall(r"<li class=.(?:faithful|illusion|unfaithful).>(?:<span.*?> )?<b>", page))
        == 5 + 3
    )
    shown = list(read(run).telling_families)
    assert len(shown) == 2 and "SVD · layer 1 query, key" not in shown  # it looks right nowhere


def test_without_scores(run: Path, no_stills: None) -> None:
    (run / "seed-0" / "heads.parquet").unlink()
    page = render(run).read_text()
    assert "heads_size" in page and "heads_scores" not in page and "means over" not in page


@pytest.mark.parametrize("model", [{}, {"layers": 2, "heads": 1}])
def test_absent_where_there_are_no_heads_to_tell_apart(
    tmp_path: Path, no_stills: None, model: dict[str, Any]
) -> None:
    page = render(write(tmp_path / "run", model)).read_text()
    assert 'id="heads"' not in page and 'href="#heads"' not in page


def test_absent_where_no_proxy_edits_a_single_head(run: Path) -> None:
    for name in ("results", "gaps"):
        frame = pl.read_parquet(run / f"{name}.parquet")
        kept = pl.col("simplification").is_in(["identity", "svd(rank=1)@1.*.{query,key}"])
        frame.filter(kept).write_parquet(run / f"{name}.parquet")
    assert read(run).by_head is None
