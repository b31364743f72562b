"""What is said first: which views hold, which do not, which need more data; on what evidence."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

import polars as pl

from anamorph.analysis.findings import IDENTITY, Findings, NamedProxy
from anamorph.analysis.words import (
    SIGNS,
    listing,
    percent,
    sequences,
    sized,
    split_label,
    threshold,
)
from anamorph.faithfulness import gaps
from anamorph.faithfulness.metrics import JUDGED

HOLDS, ILLUSION, WRONG, OPEN = "holds", "illusion", "wrong", "open"  # or not testable


class Headline(NamedTuple):
    """The counts that everything starts with, each a number of proxies.

    `holds`, `illusions`, `wrong`, `open` and `untestable` add up to `proxies`.

    Attributes:
        proxies: all.
        holds: faithful on every split.
        illusions: an illusion on one split or more.
        wrong: not looking right on the reference.
        open: none of these, as a verdict is undecided: more data are needed.
        untestable: of models that have not learnt the task.
        under: of the illusions, under-generalizing on one split or more.
        over: over-generalizing on one split or more.
        mixed: erring in both directions on one split or more.
        partly: of the illusions, undecided on another split.
        degrade: of those that do not look right, worse on one split or more.
        hit: "unseen depth 5", ...: ood splits with their number of illusions, the most first.
        spared: ood splits without any.
        reference: the split that gaps are measured against.
        by_number: of those that do not look right, by their number alone: its interval leaves it
            open, and they are worse on every split.
    """

    proxies: int
    holds: int
    illusions: int
    wrong: int
    open: int
    untestable: int
    under: int
    over: int
    mixed: int
    partly: int
    degrade: int
    hit: list[str]
    spared: list[str]
    reference: str
    by_number: int = 0

    @property
    def sentence(self) -> str:
        """What was found, in one sentence."""
        splits = len(self.hit) + len(self.spared)
        if not splits:
            return f"Nothing can be judged: the data have no split beside {self.reference}."
        views = f"{self.proxies} simplified view{'s' if self.proxies != 1 else ''}"
        if self.untestable == self.proxies:
            return f"Nothing can be said of {views} here: the model has not learnt the task."
        every = "every split" if splits > 1 else (*self.spared, *self.hit)[0].rstrip(" 0123456789")
        wrong = f"not look right even on {self.reference}"
        if self.by_number:
            wrong = f"not look right on {self.reference}"
            which = f"{self.by_number} of them " if self.wrong > 1 else ""
            wrong += f" ({which}by the number alone, whose interval leaves it open)"
        counts = (
            (self.holds, f"holds on {every}", f"hold on {every}"),
            (self.illusions, "is an illusion", "are illusions"),
            (self.wrong, f"does {wrong}", f"do {wrong}"),
            (self.open, "needs more data", "need more data"),
            (self.untestable, "is not testable here", "are not testable here"),
        )
        said = [f"{n} {one if n == 1 else more}" for n, one, more in counts if n]
        if self.holds:
            return f"Of {views}, {listing(said)}."
        none = f"None of {views}" if self.proxies > 1 else "The one simplified view"
        shown = "is shown to hold" if self.proxies > 1 else "is not shown to hold"
        return f"{none} {shown} on {every}: {listing(said)}."


class Standing(NamedTuple):
    """Where the views of a family can be trusted, where not, and where more data are needed.

    Each is a list of texts such as "rank 8 and 16: unseen short". Texts of what is not to be
    trusted start with the sign of the verdict.
    """

    title: str
    trust: list[str]
    distrust: list[str]
    open: list[str]


class Evidence(NamedTuple):
    """What stands behind the verdicts.

    Attributes:
        sentence: about sequences and models.
        splits: name, sequences, scored positions and the model's accuracy of each split, as text.
    """

    sentence: str
    splits: list[tuple[str, str, str, str]]


class Notice(NamedTuple):
    """What must be known before any verdict is read: a sentence, and more about it."""

    title: str
    text: str


def headline(run: Findings) -> Headline:
    """Count the verdicts."""
    found = [
        {cell["verdict"] for cell in run.cells.get(proxy.simplification, ())}
        for proxy in run.proxies
    ]
    fooled = [verdicts for verdicts in found if verdicts & {*gaps.ILLUSIONS}]
    kinds = Counter(map(_kind, found))
    illusions = run.judged.filter(pl.col("verdict").is_in(gaps.ILLUSIONS))["split"].to_list()
    by_split = sorted(((illusions.count(name), name) for name in run.ood), key=lambda x: -x[0])
    return Headline(
        proxies=len(run.proxies),
        holds=kinds[HOLDS],
        illusions=kinds[ILLUSION],
        wrong=kinds[WRONG],
        open=kinds[OPEN],
        untestable=kinds[gaps.NOT_TESTABLE],
        under=sum(gaps.UNDER in verdicts for verdicts in found),
        over=sum(gaps.OVER in verdicts for verdicts in found),
        mixed=sum(gaps.MIXED in verdicts for verdicts in found),
        partly=sum(gaps.UNDECIDED in verdicts for verdicts in fooled),
        degrade=sum(gaps.DEGRADES in verdicts and _kind(verdicts) == WRONG for verdicts in found),
        hit=[f"{split_label(name)} {n}" for n, name in by_split if n],
        spared=[split_label(name) for n, name in by_split if not n],
        reference=split_label(run.reference),
        by_number=sum(
            cells[0]["level"] == gaps.UNCLEAR and _kind({c["verdict"] for c in cells}) == WRONG
            for cells in run.cells.values()
        ),
    )


def _kind(verdicts: Collection[str | None]) -> str:
    """What all verdicts on a proxy together come to."""
    if gaps.NOT_TESTABLE in verdicts:
        return gaps.NOT_TESTABLE
    if any(verdict in gaps.ILLUSIONS for verdict in verdicts):
        return ILLUSION
    if set(verdicts) <= {gaps.DEGRADES, gaps.UNFAITHFUL}:
        return WRONG
    return HOLDS if set(verdicts) == {gaps.FAITHFUL} else OPEN


def standings(run: Findings) -> list[Standing]:
    """Of every family of proxies, by size and split, what its verdicts come to."""
    return [_standing(run, title, proxies) for title, proxies in run.families.items()]


def _standing(run: Findings, title: str, proxies: Sequence[NamedProxy]) -> Standing:
    trust: dict[str, list[NamedProxy]] = {}
    distrust: dict[tuple[str, str], list[NamedProxy]] = {}
    open_: dict[str, list[NamedProxy]] = {}
    asked: dict[str, list[int | None]] = {}
    for proxy in proxies:
        cells = run.cells.get(proxy.simplification, [])
        splits: dict[str | None, list[str]] = {}
        for cell in cells:
            splits.setdefault(cell["verdict"], []).append(cell["split"])
        at = {verdict: _where(run, some) for verdict, some in splits.items()}
        undecided = [cell for cell in cells if cell["verdict"] in (gaps.UNDECIDED, None)]
        if where := at.get(gaps.FAITHFUL):
            rest = len(splits[gaps.FAITHFUL]) < len(run.ood) and not where.startswith("all but")
            trust.setdefault(f"{where} only" if rest else where, []).append(proxy)
        for verdict in gaps.ILLUSIONS:
            if verdict in at:
                distrust.setdefault((verdict, at[verdict]), []).append(proxy)
        if undecided and gaps.DEGRADES in at:  # it may look right on iid, or not
            where = f"{at[gaps.DEGRADES]} (worse there)"
            distrust.setdefault((gaps.DEGRADES, where), []).append(proxy)
        elif gaps.DEGRADES in at or gaps.UNFAITHFUL in at:
            open_there = cells[0]["level"] == gaps.UNCLEAR
            even = "by the number" if open_there else "even"
            where = f"anywhere (not right {even} on {split_label(run.reference)})"
            distrust.setdefault((gaps.UNFAITHFUL, where), []).append(proxy)
        if undecided:
            where = _where(run, [cell["split"] for cell in undecided])
            open_.setdefault(where, []).append(proxy)
            asked.setdefault(where, []).extend(cell["needed"] for cell in undecided)

    def named(some: Sequence[NamedProxy], where: str) -> str:
        return f"{sizes}: {where}" if (sizes := rows_of(some, proxies)) else where

    wrong_last = sorted(distrust.items(), key=lambda x: x[0][0] == gaps.UNFAITHFUL)
    return Standing(
        title,
        [named(some, where) for where, some in trust.items()],
        [f"{SIGNS[verdict]} {named(some, where)}" for (verdict, where), some in wrong_last],
        [f"{named(some, where)} ({_asked(asked[where])})" for where, some in open_.items()],
    )


def rows_of(some: Sequence[NamedProxy], proxies: Sequence[NamedProxy]) -> str:
    """Which sizes of a family: "rank 1, 2 and 4", "all sizes"; "" where there is no size."""
    if some[0].size_name and len(some) == len(proxies) > 1:
        return "all sizes"
    return sized(some[0].size_name, [proxy.size for proxy in some])


def _where(run: Findings, splits: Collection[str]) -> str:
    if len(splits) == len(run.ood) > 1:
        return "every split"
    missing = [split for split in run.ood if split not in splits]
    if len(missing) == 1 and len(splits) > 2:
        return f"all but {split_label(missing[0])}"
    return listing([split_label(split) for split in run.ood if split in splits])


def _asked(numbers: Sequence[int | None]) -> str:
    """How many sequences would decide, of the most demanding that any number would."""
    known = [number for number in numbers if number is not None]
    if not known:
        return "more sequences alone would not decide"
    return f"about {sequences(max(known))} of each split"


def evidence(run: Findings) -> Evidence:
    """How many sequences, scored positions and models stand behind the verdicts."""
    same = run.pooled.filter(pl.col("method") != IDENTITY, metric=JUDGED)
    accuracy = run.pooled.filter(metric="model_accuracy", method=IDENTITY)
    right = {split: percent(x) for split, x in accuracy.select("split", "value").iter_rows()}
    splits = []
    for name in run.splits:
        cells = same.filter(split=name)
        count, positions = (_range(cells[column]) for column in ("sequences", "tokens"))
        splits.append((split_label(name), count, positions, right.get(name, "–")))
    models = len(run.seeds)
    what = "number" if set(run.judged["verdict"]) == {gaps.NOT_TESTABLE} else "verdict"
    text = f"Behind every {what} stand {_range(same['sequences'])} sequences of each split, with "
    text += f"{_range(same['tokens'])} scored positions, and "
    text += (
        "one model, so that it speaks of that model alone."
        if models == 1
        else f"{models} models, trained alike but for their seeds: a verdict is what all agree "
        "on, and undecided where they do not."
    )
    if run.reference in right:
        whose = "The model is" if models == 1 else "The models are"
        text += f" {whose} right at {right[run.reference]} of the positions of "
        text += f"{split_label(run.reference)}."
    if "sequence" in set(same["interval"].drop_nulls()):
        text += " Some cells stopped early; their intervals hold at whatever time they stop."
    return Evidence(text, splits)


def _range(counts: pl.Series) -> str:
    low, high = (int(n) for n in (counts.min() or 0, counts.max() or 0))  # type: ignore[arg-type]
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def notices(run: Findings) -> list[Notice]:
    """What a reader must know first: that a model has not learnt, or was hardly trained."""
    found = [_not_learnt(run)]
    if gaps.NOT_TESTABLE not in run.judged["verdict"]:  # or it would be said twice
        found.append(_trained_less(run))
    return [notice for notice in found if notice]


def _not_learnt(run: Findings) -> Notice | None:
    untestable = run.gaps.filter(verdict=gaps.NOT_TESTABLE)["seed"].unique().sort()
    if untestable.is_empty():
        return None
    everything, seeds = untestable.has_nulls(), untestable.drop_nulls().to_list()
    accuracy = run.whole.filter(
        pl.col("seed").is_null() if everything else pl.col("seed").is_in(seeds),
        metric="model_accuracy", method=IDENTITY, split=run.reference,
    )["value"]  # fmt: skip
    right = f"right at {listing([percent(x) for x in accuracy])} of the scored positions of "
    right += split_label(run.reference)
    if asked := run.spec.get("audit", {}).get("learnt"):
        right += f"; what counts as having learnt is more than {threshold(asked)}"
    steps = run.spec.get("paper_steps")
    trained = (run.spec.get("training") or {}).get("steps")
    how = ""
    if isinstance(trained, int):
        of_paper = f"; the preset paper: {steps:,}" if steps else ""
        how = f" (this run: {trained:,} steps{of_paper}; --set training.steps=… sets them)"
    if not everything:
        one = len(seeds) == 1
        return Notice(
            f"The model{'' if one else 's'} of seed{'' if one else 's'} {listing(seeds)} "
            f"{'has' if one else 'have'} not learnt the task",
            f"{'It is' if one else 'They are'} {right}. Numbers over all seeds have "
            f"{'it' if one else 'them'} in; train for longer{how}.",
        )
    return Notice(
        "The model has not learnt the task",
        f"It is {right}. Whether a view of it holds cannot be told from that: every verdict is "
        f"“{gaps.NOT_TESTABLE}”, and no number here says anything for or against a view. What is "
        f"needed is a model that has learnt: train for longer{how}, or audit another.",
    )


def _trained_less(run: Findings) -> Notice | None:
    paper = run.spec.get("paper_steps")
    trained = (run.spec.get("training") or {}).get("steps")
    if paper is None or not isinstance(trained, int) or trained >= paper:
        return None
    preset = run.spec.get("preset")
    what = f"The preset {preset} trains" if preset not in (None, "paper") else "This run trained"
    return Notice(
        "Trained for less than the paper’s preset",
        f"{what} for {trained:,} steps, the preset paper for {paper:,}. A model that is trained "
        "for longer may generalize differently, and its views hold or fail elsewhere.",
    )
