"""Views of models built by hand: gap, direction, oracle and random control are known exactly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import anamorph as am
from anamorph.analysis.findings import read
from anamorph.analysis.verdicts import sentences
from anamorph.runs.folder import Run
from anamorph.simplifications import SIMPLIFICATIONS
from anamorph.tasks import Task
from known_truth import Aimless, Largest, OneFeature, head, looked_up, mlp, task_of

UNDER, OVER = "illusion (under-generalizes)", "illusion (over-generalizes)"
SIZE = 400
KEY, MLP = "@0.*.key", "@0.mlp"


@pytest.fixture(autouse=True)
def _named(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Aimless, Largest, OneFeature):
        monkeypatch.setitem(SIMPLIFICATIONS, kind.name, kind)


@pytest.fixture
def audited(tmp_path: Path, quick_report: None) -> Callable[..., Run]:
    def audit(model: Any, task: Task, specs: list[str]) -> Run:
        return am.audit_given(model, task, specs, tmp_path / "run", learnt=0.5)

    return audit


def shares(run: Run) -> dict[str, dict[str, float]]:
    """Same predictions of every proxy but the identity by split."""
    rows = run.results.filter(
        pl.col("seed").is_null(), pl.col("facet").is_null(), pl.col("method") != "identity",
        metric="same_prediction",
    )  # fmt: skip
    found: dict[str, dict[str, float]] = {}
    for name, split, value in rows.select("simplification", "split", "value").iter_rows():
        found.setdefault(name, {})[split] = value
    return found


def judged(run: Run, simplification: str) -> dict[str, tuple[float, str]]:
    """Gap and verdict by split."""
    rows = run.gaps.filter(
        pl.col("seed").is_null(), metric="same_prediction", simplification=simplification
    )
    return {s: (gap, v) for s, gap, v in rows.select("split", "gap", "verdict").iter_rows()}


def sentence(run: Run) -> str:
    """The end of the sentence on the first family, which is of its controls."""
    return sentences(read(run.path))[0].text.split(". ")[-1]


def test_a_head_that_needs_two_directions(audited: Callable[..., Run]) -> None:
    """The second axis of its keys occurs out of distribution alone.

    Rank 1 of what was fitted in distribution is the first axis: the model itself there, and blind
    to every item of the second, so that the start token wins and the answer is "z".
    """
    splits = {
        "train": looked_up("a"),
        "iid": looked_up("a"),
        "turned": looked_up("b"),
        "mistaken": looked_up("b", answer="z"),
        "both": lambda i: looked_up("b" if i // 2 % 5 < 3 else "a")(i),
    }
    random = [f"aimless(degrees={degrees}){KEY}" for degrees in (30, 60)]
    view, oracle = f"svd(rank=1){KEY}", f"svd(rank=1, on=turned){KEY}"
    both, half = f"svd(rank=1, on=both){KEY}", f"svd(rank=1, on=train[0::2]){KEY}"
    specs = [f"svd(rank=[1,2]){KEY}", oracle, both, half, *random]
    run = audited(head(), task_of(splits, SIZE), specs)
    blind = {"iid": 1.0, "turned": 0.0, "mistaken": 0.0, "both": 0.4}
    second = {"iid": 0.0, "turned": 1.0, "mistaken": 1.0, "both": 0.6}
    assert shares(run) == {
        view: pytest.approx(blind),
        f"svd(rank=2){KEY}": dict.fromkeys(blind, 1.0),
        oracle: pytest.approx(second),
        both: pytest.approx(second),  # three in five are of the second axis, so that it comes first
        half: pytest.approx(blind),
        # A direction at an angle keeps cos² of the first axis and sin² of the second: one above and
        # one below the start token's 1/2.
        random[0]: pytest.approx(blind),
        random[1]: pytest.approx(second),
    }
    gaps = {"turned": (1.0, UNDER), "mistaken": (1.0, OVER), "both": (0.6, UNDER)}
    assert judged(run, view) == {s: (pytest.approx(gap), v) for s, (gap, v) in gaps.items()}
    assert {v for _, v in judged(run, f"svd(rank=2){KEY}").values()} == {"faithful"}
    kinds = dict(run.results.select("simplification", "control").unique().iter_rows())
    assert kinds == {
        "identity": None, view: None, f"svd(rank=2){KEY}": None,
        oracle: "oracle", both: "oracle", half: "half", **dict.fromkeys(random, "random"),
    }  # fmt: skip
    counts = run.results.filter(pl.col("facet").is_null()).select("split", "sequences").unique()
    assert dict(counts.iter_rows()) == {
        "iid": SIZE, "turned": SIZE // 2, "mistaken": SIZE, "both": SIZE // 2,
    }  # fmt: skip
    assert sentence(run) == (
        "On turned, it loses 100.0 points at rank 1; fitted there it loses nothing: the directions "
        "exist, training data did not show them; random ones lose nothing to 100.0: nothing "
        "that counts there was learnt."
    )


def test_a_view_that_is_too_small_wherever_it_is_fitted(audited: Callable[..., Run]) -> None:
    """Of two axes that both occur, one direction holds one."""
    splits = {
        "train": looked_up("a"),
        "iid": looked_up("a"),
        "both": lambda i: looked_up("b" if i // 2 % 5 < 3 else "a")(i),
    }
    specs = [f"svd(rank=1){KEY}", f"svd(rank=1, on=both){KEY}"]
    run = audited(head(), task_of(splits, SIZE), specs)
    assert sentence(run) == (
        "On both, it loses 60.0 points at rank 1; fitted there it loses 40.0: the view is too "
        "small."
    )


def test_a_transcoder_whose_features_are_needed_together(audited: Callable[..., Run]) -> None:
    """One at a time in distribution, both at once out of it.

    The largest of 1.2 and 1 is kept, which is the first alone: its answer is "x" in place of "z".
    Fitted there, the decoder of the first feature takes the second with it; which is right where
    both occur, and wrong (z: 0.1 + 3/4 of 1 + 1/1.2) where the first is alone.
    """

    def one(i: int) -> list[str]:
        return ["p", "x"] if i // 2 % 2 else ["q", "y"]

    splits = {
        "train": one,
        "iid": one,
        "together": lambda i: ["pq", "z"],
        "mistaken": lambda i: ["pq", "x"],
        "mixed": lambda i: ["pq", "z"] if i // 2 % 2 else ["p", "x"],
    }
    view, random = f"largest(k=1){MLP}", f"first(k=1){MLP}"
    oracle, mixed = f"largest(k=1, on=together){MLP}", f"largest(k=1, on=mixed){MLP}"
    run = audited(mlp(), task_of(splits, SIZE), [f"largest(k=[1,2]){MLP}", oracle, mixed, random])
    assert shares(run) == {
        view: {"iid": 1.0, "together": 0.0, "mistaken": 0.0, "mixed": 0.5},
        f"largest(k=2){MLP}": dict.fromkeys(splits.keys() - {"train"}, 1.0),
        oracle: {"iid": 0.0, "together": 1.0, "mistaken": 1.0, "mixed": 0.5},
        # Its decoder gives 0.6 / 1.22 of the second feature with the first, which is still "z".
        mixed: {"iid": 0.0, "together": 1.0, "mistaken": 1.0, "mixed": 0.5},
        # Of the second feature alone nothing is left, of both the first.
        random: {"iid": 0.5, "together": 0.0, "mistaken": 0.0, "mixed": 0.5},
    }
    gaps = {"together": (1.0, UNDER), "mistaken": (1.0, OVER), "mixed": (0.5, UNDER)}
    assert judged(run, view) == gaps
    assert sentence(run) == (
        "On together, it loses 100.0 points at k 1; fitted there it loses nothing: the features "
        "exist, training data did not show them; random ones lose 100.0: nothing that counts there "
        "was learnt."
    )
