from pathlib import Path

import pytest

from anamorph.analysis.findings import read
from anamorph.analysis.verdicts import Sentence, sentences
from anamorph.analysis.words import (
    listing,
    method_label,
    percent,
    points,
    sites_label,
    threshold,
)
from anamorph.faithfulness.gaps import (
    DEGRADES,
    FAITHFUL,
    MIXED,
    NOT_TESTABLE,
    OVER,
    UNDECIDED,
    UNDER,
    UNFAITHFUL,
)
from anamorph.report.figure import natural, slug
from judged_run import HOPELESS, UNCLEAR, WORSE_BUT_UNCLEAR, write


def said(path: Path, cells: dict[str, dict[str, str]]) -> Sentence:
    """The sentence on the one family that the cells are of."""
    (sentence,) = sentences(read(write(path / "run", cells)))
    return sentence


def sized(*verdicts: tuple[str, str]) -> dict[str, dict[str, str]]:
    """Ranks 1, 2, 4, ... with their verdicts on two splits."""
    return {
        f"svd(rank={2**i})@0.*.key": {"near": near, "far": far}
        for i, (near, far) in enumerate(verdicts)
    }


@pytest.mark.parametrize(
    ("verdicts", "tone", "text"),
    [
        (
            [(FAITHFUL, FAITHFUL)] * 2,
            "faithful",
            "Looks right on iid at every rank (at least 96.0 % same predictions), and is faithful "
            "on every split.",
        ),
        (
            [(UNFAITHFUL, DEGRADES), (UNFAITHFUL, UNFAITHFUL)],
            "unfaithful",
            "Does not look right even on iid: 79.6 % same predictions at best (rank 1), below the "
            "90 % asked for. Worse still at rank 1 on far.",
        ),
        (
            [(UNFAITHFUL, UNFAITHFUL)],
            "unfaithful",
            "Does not look right even on iid: 79.6 % same predictions (rank 1), below the 90 % "
            "asked for.",
        ),
        (
            [(UNFAITHFUL, DEGRADES), (FAITHFUL, UNDER), (FAITHFUL, FAITHFUL)],
            "illusion",
            "Looks right on iid from rank 2 on (at least 96.0 % same predictions), but is an "
            "illusion at rank 2 on far. The largest gap of 4 cells is 16.0 points [13.0, 19.0], at "
            "rank 2 on far (96.0 % → 80.0 %): it under-generalizes: it fails where the model is "
            "right. Faithful on every split at rank 4.",
        ),
        (
            [(FAITHFUL, UNDECIDED), (FAITHFUL, FAITHFUL)],
            "undecided",
            "Looks right on iid at every rank (at least 96.0 % same predictions). Whether it holds "
            "is undecided at rank 1 on far: about 1,200 sequences of each split would decide. "
            "Faithful on every split at rank 2.",
        ),
        (
            [(UNCLEAR, UNCLEAR)],
            "undecided",
            "Whether it looks right on iid at rank 1 is open: the interval of 91.0 % same "
            "predictions holds the 90 % asked for. About 900 sequences of each split would decide.",
        ),
        (
            [(UNCLEAR, UNCLEAR), (UNDECIDED, MIXED)],
            "illusion",
            "Looks right on iid at rank 2 (96.0 % same predictions), but is an illusion on far. "
            "The largest gap of 2 cells is 12.0 points [9.0, 15.0], at rank 2 on far (96.0 % → "
            "84.0 %): it errs in both directions. Undecided on near: about 1,200 sequences of each "
            "split would decide. Whether it looks right on iid at rank 1 is open: the interval of "
            "91.0 % same predictions holds the 90 % asked for. About 900 sequences of each split "
            "would decide.",
        ),
        (
            [(UNCLEAR, WORSE_BUT_UNCLEAR)],
            "illusion",
            "Whether it looks right on iid at rank 1 is open: the interval of 91.0 % same "
            "predictions holds the 90 % asked for. About 900 sequences of each split would decide. "
            "It is worse on far, and so not to be trusted there.",
        ),
        (
            [(UNDER, UNDER), (UNDECIDED, UNDER), (FAITHFUL, UNDER), (FAITHFUL, UNDECIDED)],
            "illusion",
            "Looks right on iid at every rank (at least 96.0 % same predictions), but is an "
            "illusion at rank 1 on near and up to rank 4 on far. The largest gap of 8 cells is "
            "16.0 points [13.0, 19.0], at rank 1 on near (96.0 % → 80.0 %): it under-generalizes: "
            "it fails where the model is right. Undecided at rank 2 on near and at rank 8 on far: "
            "about 1,200 sequences of each split would decide.",
        ),
        (
            [(HOPELESS, FAITHFUL)],
            "undecided",
            "Looks right on iid at rank 1 (96.0 % same predictions). Whether it holds is undecided "
            "on near: more sequences alone would not decide.",
        ),
        (
            [(NOT_TESTABLE, NOT_TESTABLE)],
            "untestable",
            "Not testable here: the model has not learnt the task.",
        ),
    ],
)
def test_a_family_in_sentences(
    tmp_path: Path, verdicts: list[tuple[str, str]], tone: str, text: str
) -> None:
    sentence = said(tmp_path, sized(*verdicts))
    assert sentence.text.replace("\N{NO-BREAK SPACE}", " ") == text
    assert sentence.tone == tone


def test_what_has_no_size_is_said_without(tmp_path: Path) -> None:
    sentence = said(tmp_path, {"onehot@1.*.pattern": {"near": FAITHFUL, "far": OVER}})
    assert sentence.title == "one-hot attention · layer 1 pattern"
    assert sentence.text.replace("\N{NO-BREAK SPACE}", " ") == (
        "Looks right on iid (96.0 % same predictions), but is an illusion on far. The largest gap "
        "of 2 cells is 14.0 points [11.0, 17.0], on far (96.0 % → 82.0 %): it over-generalizes: it "
        "is right where the model fails."
    )


@pytest.mark.parametrize("verdict", [UNDECIDED, UNCLEAR, HOPELESS, UNFAITHFUL, NOT_TESTABLE])
def test_only_what_is_shown_is_called_faithful(tmp_path: Path, verdict: str) -> None:
    sentence = said(tmp_path, sized((verdict, verdict)))
    assert "aithful on" not in sentence.text and sentence.tone not in ("faithful", "illusion")


def test_a_sentence_a_family(rendered: Path) -> None:
    assert [sentence.title for sentence in sentences(read(rendered))] == [
        "SVD · layer 0 query, key · joint",
        "SVD · layer 1 query, key · joint",
        "k-means · layer 1 query, key",
        "one-hot attention · layer 1 pattern",
    ]


def test_illusions_and_viewed_proxies_are_told_first(rendered: Path) -> None:
    run = read(rendered)
    told = [proxy.simplification for proxy in run.telling(3)]
    assert told[:2] == ["svd(rank=8, joint=true)@1.*.{query,key}", "onehot@1.*.pattern"]
    assert told[2] == "kmeans(clusters=64)@1.*.{query,key}"  # not viewed, the next worst illusion
    assert [p.row for p in run.telling(9, among={"kmeans(clusters=4)@1.*.{query,key}"})] == [
        "4 clusters"
    ]


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
