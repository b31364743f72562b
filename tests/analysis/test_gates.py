"""Which cells make a command fail."""

from pathlib import Path

import pytest

import anamorph as am
import judged_run
from anamorph.analysis.gates import Gates, failing, failing_between
from anamorph.faithfulness import gaps
from anamorph.runs.folder import Run
from compared_runs import CONTROL, OTHER, SPLITS, VIEW, agreeing, data, write

A, B, C = "svd(rank=4)@0.*.key", "svd(rank=8)@0.*.key", "onehot@0.*.pattern"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    cells = {
        A: {"near": gaps.FAITHFUL, "far": gaps.FAITHFUL},
        B: {"near": gaps.FAITHFUL, "far": gaps.OVER},
        C: {"near": gaps.UNDECIDED, "far": gaps.UNDECIDED},
    }
    path = judged_run.write(tmp_path_factory.mktemp("runs") / "run", cells)
    return Run(path, {"seeds": [0]})


@pytest.mark.parametrize(
    ("words", "cells"),
    [
        (["illusion"], {f"{B} on far"}),
        (["over-generalizes"], {f"{B} on far"}),
        (["under-generalizes"], set()),
        (["undecided"], {f"{C} on near", f"{C} on far"}),
        (["illusion", "undecided"], {f"{B} on far", f"{C} on near", f"{C} on far"}),
        (["any"], {f"{B} on far", f"{C} on near", f"{C} on far"}),
        (["degrades", "unfaithful", "untestable", "mixed"], set()),
    ],
)
def test_verdicts(run: Run, words: list[str], cells: set[str]) -> None:
    found = failing(run, Gates.of_run(None, None, words))
    assert {line.partition(":")[0] for line in found} == cells


def test_values_and_gaps_go_by_the_number(run: Run) -> None:
    """A is 0.96 on iid and 0.959 elsewhere, with intervals of 0.01 on both sides."""
    under = failing(run, Gates.of_run(None, 0.9595, ()))
    assert f"{A} on far: same prediction 0.9590, under 0.9595" in under
    assert not any(line.startswith(f"{A} on iid") for line in under)
    assert not [line for line in failing(run, Gates.of_run(None, 0.959, ())) if line.startswith(A)]
    (line,) = failing(run, Gates.of_run(0.1, None, ["illusion"]))
    assert line.startswith(f"{B} on far: same prediction ")
    assert line.endswith("0.1400 below iid, more than 0.1; illusion (over-generalizes)")
    assert failing(run, Gates.of_run(0.15, None, ())) == []


def test_controls_and_the_model_never_fail(tmp_path: Path) -> None:
    given = data(40)
    low = agreeing(given, dict.fromkeys(SPLITS, 0.2), 0)
    path = write(tmp_path / "run", given, {0: {CONTROL: low}})
    every = Gates.of_run(0.0, 1.0, ["any"])
    assert {line.partition("@")[0] for line in failing(am.load_run(path), every)} <= {
        "svd(rank=2)",
        "onehot",
    }


def test_of_a_comparison(tmp_path: Path) -> None:
    given = data(60)
    good, bad = (agreeing(given, {"iid": 0.97, "near": 0.97, "far": far}, 1) for far in (0.97, 0.5))
    a = write(tmp_path / "a", given, {0: {VIEW: good, OTHER: bad, CONTROL: good}})
    b = write(tmp_path / "b", given, {0: {VIEW: bad, OTHER: good, CONTROL: bad}}, weights="x")
    found = am.compare(a, b)

    def cells(below: float | None = None, *on: str) -> set[str]:
        lines = failing_between(found, Gates.of_comparison(below, on))
        return {line.partition(":")[0] for line in lines}

    fell, rose = f"{VIEW} on far", f"{OTHER} on far"
    assert cells(0.02) == {fell}
    assert cells(0.6) == set()
    assert cells(None, "difference") == {fell, rose}
    assert {fell, rose} <= cells(None, "verdict")
    assert fell in cells(None, "illusion") and rose not in cells(None, "illusion")
    (line,) = failing_between(found, Gates.of_comparison(0.02, ["difference"]))[:1]
    for part in ("same prediction 0.9", ", by more than 0.02; ", "; gap differs, "):
        assert part in line
    assert not failing_between(am.compare(a, a), Gates.of_comparison(0, ["difference", "any"]))


def test_without_an_interval_a_difference_may_be_one(tmp_path: Path) -> None:
    given = data(40)
    good, bad = (agreeing(given, dict.fromkeys(SPLITS, share), 1) for share in (0.9, 0.8))
    until = {"audit": {"until": 0.1}}
    a = write(tmp_path / "a", given, {0: {VIEW: good}}, spec=until)
    b = write(tmp_path / "b", given, {0: {VIEW: bad}}, spec=until)
    lines = failing_between(am.compare(a, b), Gates.of_comparison(None, ["difference"]))
    assert lines and all("may differ (there is no interval)" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.2, None, ()), "--fail-below must be a number from 0 to 1; got 1.2"),
        ((None, -0.1, ()), "--fail-under must be a number from 0 to 1"),
        ((None, None, ["ilusion"]), "--fail-on must be one of illusion, .*; got 'ilusion'"),
        ((None, None, ["difference"]), "--fail-on must be one of"),
    ],
)
def test_what_no_gate_can_be(arguments: tuple, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(am.AnamorphError, match=message):
        Gates.of_run(*arguments)
