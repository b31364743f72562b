"""What the report draws, against the plain model and by hand."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

import anamorph as am
from anamorph.analysis import pictures
from anamorph.auditing.audit import fit_on_task, with_identity
from anamorph.models.sites import Site
from anamorph.runs.older import with_families
from anamorph.tasks import Facet, Split, Task
from plain import forward, small_model

SPEC = "onehot@1.*.pattern"


@pytest.fixture(scope="module")
def few(task: Task) -> Task:
    """The task with three sequences in each of two splits."""
    splits = {"train": task.train.take(np.arange(50))}
    splits |= {n: task.splits[n].take(np.arange(3)) for n in ("iid", "unseen_depth")}
    return replace(task, splits=splits)


@pytest.fixture(scope="module")
def model(task: Task) -> am.Decoder:
    return small_model(task)


def one_hot(x: np.ndarray) -> np.ndarray:
    return (x == x.max(axis=1, keepdims=True)).astype(float)


EDITS = {"identity": {}, SPEC: {Site(1, h, "pattern"): one_hot for h in (0, 1)}}


def test_telling_proxies() -> None:
    values = {
        "identity": (None, 1.0),
        "svd(rank=1)@1.*.key": (1, 0.3),
        "svd(rank=2)@1.*.key": (2, 0.92),
        "svd(rank=4)@1.*.key": (4, 0.99),
        "svd(rank=1)@0.*.key": (1, 0.1),
        "svd(rank=2)@0.*.key": (2, 0.2),
        "onehot@1.*.pattern": (None, 0.4),
        "svd(rank=1)@0.*.key;svd(rank=1)@1.*.key": (1, 0.3),
        "svd(rank=2)@0.*.key;svd(rank=2)@1.*.key": (2, 0.3),
    }
    rows = [
        {"seed": None, "simplification": name, "method": name.split("(")[0].split("@")[0]}
        | {"size": size, "role": "iid", "facet": None, "metric": "same_prediction", "value": same}
        for name, (size, same) in values.items()
    ]
    schema = {"seed": pl.Int64, "size": pl.Float64, "facet": pl.String}
    table = with_families(pl.DataFrame(rows, schema_overrides=schema))
    other = table.with_columns(role=pl.lit("ood"), value=pl.lit(0.95))
    chosen = pictures.telling_proxies(pl.concat([other, table]), 0.9)
    assert chosen[0] == "identity"
    both = "svd(rank=2)@0.*.key;svd(rank=2)@1.*.key"
    single = {"svd(rank=2)@1.*.key", "svd(rank=2)@0.*.key", "onehot@1.*.pattern"}
    assert set(chosen[1:]) == single | {both}
    assert "svd(rank=4)@1.*.key" in pictures.telling_proxies(table, 0.95)


def test_attended_depth(few: Task, model: am.Decoder) -> None:
    fitted = fit_on_task(model, with_identity([SPEC]), few, 5)
    table = pictures.attended(model, few, list(fitted.values()))
    mass: dict[tuple[object, ...], float] = defaultdict(float)
    argmax: dict[tuple[object, ...], int] = defaultdict(int)
    for name, edits in EDITS.items():
        for split in few.evaluated:
            facet = split.facets["depth"]
            for number, tokens in enumerate(split):
                start = split.offsets[number]
                levels = [
                    "–" if c < 0 else facet.names[c] for c in facet.codes[start:][: len(tokens)]
                ]
                run = forward(model, tokens, edits)
                for place in np.flatnonzero(split.scored[start:][: len(tokens)]):
                    for layer in (0, 1):
                        for head in (0, 1):
                            row = run[Site(layer, head, "pattern")][place - 1]
                            cell = name, split.name, layer, head, levels[place]
                            for level, weight in zip(levels, row, strict=True):
                                mass[*cell, level] += weight
                            argmax[*cell, levels[row.argmax()]] += 1
    columns = ("simplification", "split", "layer", "head", "true_level", "attended_level")
    for row in table.to_dicts():
        key = tuple(row[c] for c in columns)
        assert row["mass"] == pytest.approx(mass.pop(key), abs=1e-4)
        assert row["argmax"] == argmax.pop(key, 0)
        assert row["facet"] == "depth"
    assert sum(mass.values()) == pytest.approx(0, abs=1e-6)  # what is not there has no mass
    assert not any(argmax.values())


def test_matching_by_a_stack(few: Task, model: am.Decoder) -> None:
    table = pictures.matching(model, few, "depth")
    assert len(table) == 2 * 4 and set(table["split"]) == {"iid", "unseen_depth"}
    k = len(few.candidates)
    for split in few.evaluated:
        hits, positions = np.zeros((2, 2)), 0
        for number, tokens in enumerate(split):
            run = forward(model, tokens, {})
            scored = split.scored[split.offsets[number] :]
            stack = []
            for place, token in enumerate(tokens):
                if 2 <= token < 2 + k:
                    stack.append(place)
                elif token >= 2 + k:
                    opener = stack.pop()
                    positions += bool(scored[place])
                    for layer, head in np.ndindex(2, 2):
                        row = run[Site(layer, head, "pattern")][place - 1]
                        hits[layer, head] += bool(scored[place]) and row.argmax() == opener
        for layer, head, value, count in (
            table.filter(split=split.name).select("layer", "head", "value", "positions").iter_rows()
        ):
            assert count == positions > 0
            assert value == pytest.approx(hits[layer, head] / positions)
    assert table["value"].max() > 0


def test_what_is_on_no_level_matches_nothing(few: Task, model: am.Decoder) -> None:
    level = Facet(np.full(len(few.reference.tokens), -1, np.int16), ("only",))
    split = few.reference
    bare = Split("iid", "iid", split.tokens, split.offsets, split.scored, {"depth": level})
    task = Task("mine", {}, few.vocabulary, few.candidates, {"iid": bare})
    assert pictures.matching(model, task, "depth").select("value", "positions").unique().row(0) == (
        0.0,
        0,
    )


def test_scatter(few: Task, model: am.Decoder) -> None:
    table = pictures.scatter(model, few, 50)
    train = [forward(model, tokens, {}) for tokens in few.train]
    for site in (Site(0, 1, "query"), Site(1, 0, "key")):
        axes = np.linalg.svd(np.concatenate([run[site] for run in train]))[2][:2]
        for split in few.evaluated:
            rows = table.filter(
                pl.col("layer") == site.layer,
                pl.col("head") == site.head,
                pl.col("kind") == site.kind,
                pl.col("split") == split.name,
            )
            expected = np.concatenate([forward(model, t, {})[site] @ axes.T for t in split])
            got = rows.select("component_1", "component_2").to_numpy()
            np.testing.assert_allclose(np.abs(got), np.abs(expected), atol=1e-3)
            assert rows["token"].to_list() == [few.vocabulary[t] for t in split.tokens]
            assert rows["position"].to_list() == [i for t in split for i in range(len(t))]
            assert rows["sequence"].to_list() == [n for n, t in enumerate(split) for _ in t]
            depth = split.facets["depth"]
            texts = [None if c < 0 else depth.names[c] for c in depth.codes]
            assert rows["depth"].to_list() == texts


def test_attention_maps(few: Task, model: am.Decoder) -> None:
    fitted = fit_on_task(model, with_identity([SPEC]), few, 5)
    table = pictures.patterns(model, few, list(fitted.values()))
    sentences = pictures.sentences(few)
    for split in few.evaluated:
        for number, sequence in enumerate(pictures.mapped_sentences(split)):
            tokens = split.tokens[split.offsets[sequence] : split.offsets[sequence + 1]]
            scored = split.scored[split.offsets[sequence] : split.offsets[sequence + 1]]
            said = sentences.filter(split=split.name, sequence=number)
            assert said["token"].to_list() == [few.vocabulary[t] for t in tokens]
            assert said["scored"].to_list() == scored.tolist()
            for name, edits in EDITS.items():
                run = forward(model, tokens, edits)
                rows = table.filter(
                    simplification=name, split=split.name, sequence=number, layer=1, head=1
                )
                full = np.zeros((len(tokens), len(tokens)))
                full[rows["query"], rows["key"]] = rows["weight"]
                np.testing.assert_allclose(full, run[Site(1, 1, "pattern")], atol=1e-4)


def test_short_sentences_with_much_to_see_are_mapped() -> None:
    lengths, scored = [50, 10, 12, 41, 40], [30, 2, 5, 9, 5]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    marks = np.zeros(offsets[-1], bool)
    for start, count in zip(offsets, scored, strict=False):
        marks[start + 1 : start + 1 + count] = True
    codes = np.zeros(offsets[-1], np.int16)
    split = Split("x", "ood", codes, offsets, marks, {"depth": Facet(codes, ("1",))})
    assert pictures.mapped_sentences(split).tolist() == [2, 4]
    assert pictures.mapped_sentences(split.take(np.array([0, 3, 1]))).tolist() == [2]
