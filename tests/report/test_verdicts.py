from pathlib import Path
from typing import Any

import polars as pl
import pytest

from anamorph.report.data import read
from anamorph.report.figure import natural, slug
from anamorph.report.verdicts import Headline, headline, sentences
from anamorph.report.words import (
    listing,
    method_label,
    percent,
    points,
    sites_label,
    split_size,
    threshold,
)


def test_headline_counts_against_a_plain_loop(rendered: Path) -> None:
    results = pl.read_parquet(rendered / "results.parquet").filter(
        pl.col("seed").is_null(), pl.col("facet").is_null(), pl.col("metric") == "same_prediction"
    )
    gaps = pl.read_parquet(rendered / "gaps.parquet").filter(
        pl.col("seed").is_null(), pl.col("metric") == "same_prediction"
    )
    looking = {
        row["simplification"]
        for row in results.iter_rows(named=True)
        if row["split"] == "iid" and row["value"] >= 0.9 and row["method"] != "identity"
    }
    found: dict[str, set[str]] = {}
    for row in gaps.iter_rows(named=True):
        if row["simplification"] in looking:
            found.setdefault(row["simplification"], set()).add(row["verdict"])
    count = headline(read(rendered))
    assert count.proxies == 14
    assert count.looking == len(looking) == 7
    assert count.under == sum("illusion (under-generalizes)" in v for v in found.values()) == 4
    assert count.over == sum("illusion (over-generalizes)" in v for v in found.values()) == 1
    assert count.mixed == 0
    assert count.sentence == "7 of 14 proxies look right in distribution; 5 of these are illusions."
    assert count.illusions == 5 and count.everywhere == 2
    assert count.hit == ["unseen depth 5", "unseen depth matched 5"]
    assert count.spared == ["seen structure", "unseen short", "unseen long"]


def test_illusions_that_err_both_ways_are_counted(copied: Path) -> None:
    gaps = pl.read_parquet(copied / "gaps.parquet")
    before = headline(read(copied))
    both = pl.col("verdict").str.replace("over-generalizes", "mixed")
    gaps.with_columns(both).write_parquet(copied / "gaps.parquet")
    after = headline(read(copied))
    assert (after.over, after.mixed) == (before.mixed, before.over) == (0, 1)
    assert after.illusions == before.illusions


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ({"hit": [], "spared": []}, "Nothing can be judged: the data have no split beside iid."),
        ({"looking": 0}, "None of the 9 proxies looks right even in distribution."),
        ({"illusions": 0}, "3 of 9 proxies look right in distribution, and no illusion was found."),
        ({"looking": 1}, "1 of 9 proxies looks right in distribution; 1 of these is an illusion."),
        ({}, "3 of 9 proxies look right in distribution; 1 of these is an illusion."),
    ],
)
def test_the_headline_in_a_sentence(counts: dict[str, Any], sentence: str) -> None:
    count = Headline(9, 3, 1, 1, 0, 0, 2, hit=["ood 1"], spared=[], reference="iid")
    assert count._replace(**counts).sentence == sentence


def test_a_sentence_a_family(rendered: Path) -> None:
    said = {s.title: s for s in sentences(read(rendered))}
    assert list(said) == [
        "SVD · layer 0 query, key · joint",
        "SVD · layer 1 query, key · joint",
        "k-means · layer 1 query, key",
        "one-hot attention · layer 1 pattern",
    ]
    svd = said["SVD · layer 1 query, key · joint"]
    assert svd.tone == "illusion"
    assert svd.text.startswith("Looks right on iid from rank 8 on (at least 93.")
    assert "illusion up to rank 16 on unseen depth and unseen depth matched" in svd.text
    assert "at rank 8 on unseen depth" in svd.text
    assert svd.text.endswith("Faithful on every split at rank 32.")
    onehot = said["one-hot attention · layer 1 pattern"].text
    assert onehot.startswith("Looks right on iid (") and "over-generalizes" in onehot


def test_illusions_and_viewed_proxies_are_told_first(rendered: Path) -> None:
    run = read(rendered)
    told = [proxy.simplification for proxy in run.telling(3)]
    assert told[:2] == ["svd(rank=8, joint=true)@1.*.{query,key}", "onehot@1.*.pattern"]
    assert told[2] == "kmeans(clusters=64)@1.*.{query,key}"  # not viewed, the next worst illusion
    assert [p.row for p in run.telling(9, among={"kmeans(clusters=4)@1.*.{query,key}"})] == [
        "4 clusters"
    ]


@pytest.mark.parametrize(
    ("spec", "size", "rest", "name"),
    [
        ("svd(rank=4)@1.*.{query,key}", 4.0, "svd@1.*.{query,key}", "rank"),
        ("svd(rank=4, joint=true)@0.*.key", 4.0, "svd(joint=true)@0.*.key", "rank"),
        ("kmeans(clusters=16, seed=1)@3.mlp", 16.0, "kmeans(seed=1)@3.mlp", "clusters"),
        ("kmeans(seed=1, clusters=16)@3.mlp", 16.0, "kmeans(seed=1)@3.mlp", "clusters"),
        ("onehot@1.*.pattern", None, "onehot@1.*.pattern", ""),
        ("svd(rank=4)@1.*.key;onehot@1.*.pattern", 4.0, "svd@1.*.key;onehot@1.*.pattern", "rank"),
        ("svd(rank=2)@1.1.query;svd(rank=2)@1.0.key", 2, "svd@1.1.query;svd@1.0.key", "rank"),
        (
            "svd(rank=2)@1.0.key;pca(rank=20)@1.0.query",
            2,
            "svd@1.0.key;pca(rank=20)@1.0.query",
            "rank",
        ),
        ("svd(rank=4)@0.*.key;svd(rank=4)@1.*.key", 4, "svd@0.*.key;svd@1.*.key", "rank"),
        ("mine(words=1e6)@3.mlp", 1e6, "mine@3.mlp", "words"),
        ("mine(words=1000000)@3.mlp", 1e6, "mine@3.mlp", "words"),
        ("kmeans(seed=16, clusters=16)@3.mlp", 16, "kmeans(seed=16)@3.mlp", "clusters"),
        (
            "svd(rank=4)+kmeans(clusters=16)@3.mlp",
            None,
            "svd(rank=4)+kmeans(clusters=16)@3.mlp",
            "",
        ),
        ("svd(rank=1)@1.*.key;pca(rank=10)@1.*.key", 1, "svd@1.*.key;pca(rank=10)@1.*.key", "rank"),
    ],
)
def test_split_size(spec: str, size: float | None, rest: str, name: str) -> None:
    assert split_size(spec, size) == (rest, name)


def test_words() -> None:
    assert sites_label("1.*.{query,key}") == "layer 1 query, key"
    assert sites_label("0-3.{0,2}.value") == "layer 0-3 head 0, 2 value"
    assert sites_label("*.residual") == "all layers residual"
    assert sites_label("odd site") == "odd site"
    assert method_label("svd+kmeans") == "SVD + k-means"
    assert method_label("svd; onehot") == "SVD and one-hot attention"
    assert method_label("mine") == "mine"
    assert listing(["a", "b", "c"]) == "a, b and c" and listing([1]) == "1"
    assert slug("one-hot attention · layer 1") == "one-hot-attention-layer-1"
    assert natural(["10", "2", "–", "1", "16–31", "2"]) == ["–", "1", "2", "10", "16–31"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "100.0 %"),
        (0.99998, "99.998 %"),
        (0.9999999, "almost 100 %"),
        (0.9812, "98.1 %"),
        (0.0, "0.0 %"),
        (0.0002, "0.02 %"),
    ],
)
def test_percent_does_not_round_to_certainty(value: float, text: str) -> None:
    assert percent(value) == text.replace(" %", "\N{NO-BREAK SPACE}%")


def test_points_and_threshold() -> None:
    assert points(-0.0312) == "\N{MINUS SIGN}3.1"
    assert threshold(0.9) == "90\N{NO-BREAK SPACE}%" and threshold(2 / 3)[:4] == "66.7"
