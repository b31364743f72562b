"""What a reader sees first: which views hold, which do not, which need more data."""

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from anamorph.analysis.findings import Findings, read
from anamorph.analysis.summary import Headline, evidence, headline, notices, standings
from anamorph.analysis.words import SIGNS, WORDS
from anamorph.faithfulness.gaps import (
    DEGRADES,
    FAITHFUL,
    ILLUSIONS,
    MIXED,
    NOT_TESTABLE,
    OVER,
    UNDECIDED,
    UNDER,
    UNFAITHFUL,
    VERDICTS,
)
from anamorph.report import page as page_module
from anamorph.report import render
from anamorph.report.charts import verdicts as charts_verdicts
from judged_run import BY_NUMBER, HOPELESS, NARROW, UNCLEAR, WORSE_BUT_UNCLEAR, write

MIXTURE = {
    "svd(rank=1)@0.*.key": {"near": UNFAITHFUL, "far": DEGRADES},
    "svd(rank=2)@0.*.key": {"near": UNFAITHFUL, "far": UNFAITHFUL},
    "svd(rank=4)@0.*.key": {"near": UNCLEAR, "far": UNCLEAR},
    "svd(rank=8)@0.*.key": {"near": FAITHFUL, "far": UNDER},
    "svd(rank=16)@0.*.key": {"near": FAITHFUL, "far": UNDECIDED},
    "svd(rank=32)@0.*.key": {"near": FAITHFUL, "far": FAITHFUL},
    "onehot@0.*.pattern": {"near": UNDECIDED, "far": OVER},
    "onehot@1.*.pattern": {"near": MIXED, "far": MIXED},
}


@pytest.fixture
def no_stills(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "write_stills", lambda figures, folder, names: None)


@pytest.fixture
def mixture(tmp_path: Path) -> Findings:
    return read(write(tmp_path / "run", MIXTURE))


def first_screen(page: str) -> str:
    """The text of the page up to what is said family by family."""
    start = page.index("<h1>")
    page = re.sub(r"<noscript>.*?</noscript>", "", page)
    text = re.sub(r"<[^>]+>", " ", page[start : page.index("<h3>", start)])
    return " ".join(text.split())


def test_the_headline_counts_every_proxy_once(mixture: Findings) -> None:
    count = headline(mixture)
    assert (count.holds, count.illusions, count.wrong, count.open) == (1, 3, 2, 2)
    assert count.holds + count.illusions + count.wrong + count.open == count.proxies == 8
    assert (count.under, count.over, count.mixed) == (1, 1, 1)
    assert count.partly == 1 and count.degrade == 1  # one-hot in layer 0; rank 1
    assert count.hit == ["far 3", "near 1"] and count.spared == []
    assert count.sentence == (
        "Of 8 simplified views, 1 holds on every split, 3 are illusions, 2 do not look right even "
        "on iid and 2 need more data."
    )


def test_what_needs_more_data_is_not_counted_among_what_does_not_look_right(tmp_path: Path) -> None:
    cells = {"svd(rank=1)@0.*.key": {"near": UNDECIDED, "far": DEGRADES}}
    count = headline(read(write(tmp_path / "run", cells)))
    assert (count.open, count.wrong, count.degrade) == (1, 0, 0)


def test_what_does_not_look_right_by_its_number_alone_is_told(tmp_path: Path) -> None:
    """Worse everywhere: it may look right on iid or not, and its number there is taken."""
    cells = {f"svd(rank={r})@0.*.key": {"near": BY_NUMBER, "far": BY_NUMBER} for r in (1, 2)}
    found = read(write(tmp_path / "run", cells | {"onehot@0.*.pattern": {"near": DEGRADES}}))
    count = headline(found)
    assert (count.wrong, count.by_number, count.open) == (3, 2, 0)
    assert count.sentence == (
        "None of 3 simplified views is shown to hold on every split: 3 do not look right on iid "
        "(2 of them by the number alone, whose interval leaves it open)."
    )
    assert count._replace(proxies=1, wrong=1, by_number=1).sentence.endswith(
        "1 does not look right on iid (by the number alone, whose interval leaves it open)."
    )
    svd, onehot = standings(found)
    assert svd.distrust == ["× all sizes: anywhere (not right by the number on iid)"]
    assert onehot.distrust == ["× anywhere (not right even on iid)"]


def test_headline_of_a_larger_run_against_a_plain_loop(rendered: Path) -> None:
    found: dict[str, set[str]] = {}
    gaps = pl.read_parquet(rendered / "gaps.parquet")
    for row in gaps.filter(metric="same_prediction").iter_rows(named=True):
        if row["seed"] is None:
            found.setdefault(row["simplification"], set()).add(row["verdict"])
    count = headline(read(rendered))
    assert count.proxies == len(found) == 14
    assert count.holds == sum(verdicts == {FAITHFUL} for verdicts in found.values()) > 0
    assert count.illusions == sum(bool(v & set(ILLUSIONS)) for v in found.values()) > 0
    assert count.wrong == sum(bool(v & {DEGRADES, UNFAITHFUL}) for v in found.values()) > 0


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ({"hit": [], "spared": []}, "Nothing can be judged: the data have no split beside iid."),
        (
            {"holds": 0, "illusions": 0, "wrong": 9},
            "None of 9 simplified views is shown to hold on every split: 9 do not look right even "
            "on iid.",
        ),
        (
            {"holds": 0, "illusions": 0, "wrong": 0, "open": 9},
            "None of 9 simplified views is shown to hold on every split: 9 need more data.",
        ),
        (
            {"proxies": 1, "holds": 0, "illusions": 0, "wrong": 0, "open": 1},
            "The one simplified view is not shown to hold on every split: 1 needs more data.",
        ),
        (
            {"untestable": 9},
            "Nothing can be said of 9 simplified views here: the model has not learnt the task.",
        ),
        (
            {"hit": [], "spared": ["far"], "illusions": 0, "holds": 8},
            "Of 9 simplified views, 8 hold on far and 6 do not look right even on iid.",
        ),
        (
            {},
            "Of 9 simplified views, 2 hold on every split, 1 is an illusion and 6 do not look "
            "right even on iid.",
        ),
    ],
)
def test_the_headline_in_a_sentence(counts: dict[str, Any], sentence: str) -> None:
    count = Headline(
        proxies=9, holds=2, illusions=1, wrong=6, open=0, untestable=0, under=1, over=0, mixed=0,
        partly=0, degrade=0, hit=["ood 1"], spared=["far"], reference="iid",
    )  # fmt: skip
    assert count._replace(**counts).sentence == sentence


def test_standings_name_sizes_and_splits(mixture: Findings) -> None:
    found = {standing.title: standing for standing in standings(mixture)}
    svd = found["SVD · layer 0 key"]
    assert svd.trust == ["rank 8 and 16: near only", "rank 32: every split"]
    assert svd.distrust == ["▼ rank 8: far", "× rank 1 and 2: anywhere (not right even on iid)"]
    assert svd.open == [
        "rank 4: every split (about 900 sequences of each split)",
        "rank 16: far (about 1,200 sequences of each split)",
    ]
    first = found["one-hot attention · layer 0 pattern"]
    assert (first.trust, first.distrust) == ([], ["▲ far"])
    assert first.open == ["near (about 1,200 sequences of each split)"]
    assert found["one-hot attention · layer 1 pattern"].distrust == ["◆ every split"]


def test_what_no_number_of_sequences_would_decide(tmp_path: Path) -> None:
    cells = {f"svd(rank={n})@0.*.key": {"near": HOPELESS, "far": FAITHFUL} for n in (1, 2)}
    (svd,) = standings(read(write(tmp_path / "run", cells)))
    assert svd.open == ["all sizes: near (more sequences alone would not decide)"]


def test_what_is_worse_is_not_to_be_trusted_even_if_it_is_open_how_it_looks(tmp_path: Path) -> None:
    """Rank 8 of .916 on iid and .706 on unseen depth, where .9 lies in the interval on iid."""
    cells = {"svd(rank=8)@0.*.key": {"near": UNCLEAR, "far": WORSE_BUT_UNCLEAR}}
    (svd,) = standings(read(write(tmp_path / "run", cells)))
    assert (svd.trust, svd.distrust) == ([], ["▼ rank 8: far"])
    assert svd.open == ["rank 8: near (about 900 sequences of each split)"]


def test_most_of_many_splits_are_named_by_the_one_that_is_missing(tmp_path: Path) -> None:
    sequences = {name: 100 for name in ("iid", "a", "b", "c", "d")}
    cells = {"onehot@0.*.pattern": {"a": FAITHFUL, "b": FAITHFUL, "c": FAITHFUL, "d": UNDER}}
    (found,) = standings(read(write(tmp_path / "run", cells, sequences=sequences)))
    assert (found.trust, found.distrust) == (["all but d"], ["▼ d"])


def test_a_view_that_agrees_on_a_split_but_not_on_iid_is_nowhere_to_be_trusted(
    tmp_path: Path,
) -> None:
    """Agreement of .998 on the split beside .796 on iid."""
    run = read(write(tmp_path / "run", {"kmeans(clusters=4)@0.*.key": {"near": UNFAITHFUL}}))
    (found,) = standings(run)
    assert found.trust == [] and found.distrust[0].startswith("× ")
    figure = charts_verdicts.matrix(run)
    assert figure
    shown = figure.data.filter(split="near")
    assert shown["text"].to_list() == ["× 99.8"] and shown["verdict"].to_list() == [UNFAITHFUL]


def test_no_verdict_but_faithful_is_green_and_all_are_told_apart() -> None:
    drawn = charts_verdicts.VERDICTS
    assert set(drawn) == set(VERDICTS) == set(SIGNS)
    assert [v for v in VERDICTS if drawn[v][0] == "faithful"] == [FAITHFUL]
    assert len({fill for fill, *_ in drawn.values()}) == len(VERDICTS)
    assert len(set(SIGNS.values())) == len(VERDICTS)  # so that colour is not needed
    for word in (FAITHFUL, DEGRADES, UNFAITHFUL, UNDECIDED, NOT_TESTABLE, "illusion", "interval"):
        assert word in WORDS


def test_the_matrix_says_which_judgement_is_open(mixture: Findings) -> None:
    figure = charts_verdicts.matrix(mixture)
    assert figure
    of = {(row["proxy"], row["split"]): row for row in figure.data.iter_rows(named=True)}
    assert of["svd(rank=4)@0.*.key", "far"]["why"] == (
        "whether it looks right on iid; about 900 sequences of each split would decide"
    )
    assert of["svd(rank=16)@0.*.key", "far"]["why"] == (
        "whether it is worse here; about 1,200 sequences of each split would decide"
    )
    assert of["svd(rank=8)@0.*.key", "far"]["why"] == ""
    texts = {split: of["svd(rank=4)@0.*.key", split]["text"] for split in NARROW}
    assert texts == {"iid": "? 91.0", "near": "? 91.1", "far": "? 91.1"}
    assert of["svd(rank=1)@0.*.key", "iid"]["text"] == "× 79.6"
    assert of["svd(rank=1)@0.*.key", "far"]["text"] == "↓ 63.4"
    assert of["svd(rank=32)@0.*.key", "iid"]["text"] == "96.0"


def test_the_first_screen_of_a_mixture(mixture: Findings, no_stills: None) -> None:
    text = first_screen(render(mixture.path).read_text())
    assert "1 holds on every split, 3 are illusions" in text
    assert "400 sequences of each split, with 4,000 scored positions, and one model" in text
    assert "▼ rank 8: far" in text and "rank 32: every split" in text
    assert "rank 16: far (about 1,200 sequences of each split)" in text


def test_a_page_on_which_nothing_is_decided(tmp_path: Path, no_stills: None) -> None:
    """Of 24 sequences, with a gap of 2.2 points, nothing is called faithful."""
    cells = {
        "svd(rank=4)@0.*.key": {"near": UNDECIDED, "far": UNDECIDED},
        "svd(rank=8)@0.*.key": {"near": UNCLEAR, "far": UNCLEAR},
    }
    run = write(tmp_path / "run", cells, sequences=dict.fromkeys(NARROW, 24))
    page = render(run).read_text()
    text = first_screen(page)
    assert "None of 2 simplified views is shown to hold on every split: 2 need more data." in text
    assert "24 sequences of each split, with 240 scored positions" in text
    (row,) = re.findall(r"<tr><td>SVD · layer 0 key</td>(.*?)</tr>", page)
    assert re.findall(r"<td>(.*?)</td>", row)[:2] == ["–", "–"]
    assert not re.search(r"[Ff]aithful on every split", page)
    assert '<li class="undecided"><b>SVD · layer 0 key.</b>' in page


@pytest.mark.parametrize("steps", [300, None])
def test_a_model_that_has_not_learnt(tmp_path: Path, no_stills: None, steps: int | None) -> None:
    cells = {
        "svd(rank=4)@0.*.key": {"near": NOT_TESTABLE},
        "onehot@0.*.pattern": {"near": NOT_TESTABLE},
    }
    spec = {"preset": "paper", "paper_steps": 15_000, "training": steps and {"steps": steps}}
    run = write(tmp_path / "run", cells, spec, accuracy=0.44)
    page = render(run).read_text()
    text = first_screen(page)
    start = text.removeprefix("Does the simplified view hold? ")
    assert start.startswith("The model has not learnt the task. It is right at 44.0 % of")
    assert "“not testable here”" in start and "train for longer" in start
    assert ("this run: 300 steps; the preset paper: 15,000" in start) == (steps is not None)
    assert "Nothing can be said of 2 simplified views here" in text
    section = page[page.index('<section id="verdicts">') : page.index("</section>")]
    assert 'class="standings"' not in section and 'class="tiles"' not in section
    figure = charts_verdicts.matrix(read(run))
    assert figure and set(figure.data["verdict"]) == {"reference", NOT_TESTABLE}


def test_one_of_several_models_that_has_not_learnt(tmp_path: Path) -> None:
    cells = {"onehot@0.*.pattern": {"near": FAITHFUL, "far": FAITHFUL}}
    run = write(tmp_path / "run", cells, seeds=(0, 1, 2), accuracy=0.99)
    gaps = pl.read_parquet(run / "gaps.parquet")
    of_1 = pl.when(pl.col("seed") == 1).then(pl.lit(NOT_TESTABLE)).otherwise("verdict")
    gaps.with_columns(of_1.alias("verdict")).write_parquet(run / "gaps.parquet")
    (notice,) = notices(read(run))
    assert notice.title == "The model of seed 1 has not learnt the task"
    assert notice.text.startswith("It is right at 99.0")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            {"preset": "demo", "training": {"steps": 3500}},
            "The preset demo trains for 3,500 steps, the preset paper for 15,000.",
        ),
        ({"training": {"steps": 14_999}}, "This run trained for 14,999 steps"),
        ({"preset": "paper", "training": {"steps": 9}}, "This run trained for 9 steps"),
        ({"preset": "paper", "training": {"steps": 15_000}}, None),
        ({"preset": None, "training": None}, None),  # a model that was given
        ({"paper_steps": None, "training": {"steps": 1}}, None),  # there is no preset
    ],
)
def test_less_training_than_the_papers_preset_is_told(
    tmp_path: Path, spec: dict[str, Any], words: str | None
) -> None:
    cells = {"onehot@0.*.pattern": {"near": FAITHFUL}}
    found = notices(read(write(tmp_path / "run", cells, {"paper_steps": 15_000} | spec)))
    assert bool(found) == (words is not None)
    if words:
        assert found[0].title == "Trained for less than the paper’s preset"
        assert words in found[0].text


def test_evidence_of_splits_of_different_sizes(tmp_path: Path) -> None:
    sequences = {"iid": 40, "near": 400, "far": 1000}
    run = write(tmp_path / "run", MIXTURE, sequences=sequences, seeds=(0, 1, 2), accuracy=0.987)
    found = evidence(read(run))
    assert "40 to 1,000 sequences of each split, with 400 to 10,000 scored" in found.sentence
    assert "3 models, trained alike but for their seeds" in found.sentence
    right = "98.7\N{NO-BREAK SPACE}%"
    assert found.splits == [
        ("iid", "40", "400", right), ("near", "400", "4,000", right),
        ("far", "1,000", "10,000", right),
    ]  # fmt: skip


def test_evidence_of_cells_that_stopped_early(tmp_path: Path) -> None:
    run = write(tmp_path / "run", MIXTURE)
    results = pl.read_parquet(run / "results.parquet")
    early = (pl.col("method") == "onehot") & (pl.col("split") == "far")
    results.with_columns(
        interval=pl.when(early).then(pl.lit("sequence")).otherwise("interval"),
        sequences=pl.when(early).then(112).otherwise("sequences"),
    ).write_parquet(run / "results.parquet")
    found = evidence(read(run))
    assert [split[1] for split in found.splits] == ["400", "400", "112 to 400"]
    assert "Some cells stopped early; their intervals hold" in found.sentence


def test_families_at_the_same_sites_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    specs = [
        "low_rank(rank=8)@1.*.pattern",
        "low_rank(rank=8, whitened=true)@1.*.pattern",
        "prune(density=0.5, by=wanda)@*.mlp",
        "topk_sae(features=64, k=4, seed=1)@1.residual",
        "topk_sae(features=64, k=4, seed=2)@1.residual",
        "svd(rank=2, joint=true)@0.*.key",
        "svd(rank=2, rescale=true)@0.*.key;onehot@1.*.pattern",
        "svd(rank=2)@0.*.key;onehot@1.*.pattern",
    ]
    run = read(write(tmp_path / "run", {spec: {"near": FAITHFUL} for spec in specs}))
    assert list(run.families) == [
        "low rank · layer 1 pattern",
        "low rank · layer 1 pattern · whitened",
        "pruning · all layers mlp",
        "TopK SAE · layer 1 residual · seed 1",
        "TopK SAE · layer 1 residual · seed 2",
        "SVD · layer 0 key · joint",
        "SVD · layer 0 key + layer 1 pattern · rescale",
        "SVD · layer 0 key + layer 1 pattern",
    ]
