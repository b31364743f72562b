"""What is said first: which views hold, which do not, which need more data; on what evidence."""

from collections.abc import Collection, Mapping, Sequence
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

HOLDS, ILLUSION, WRONG, OPEN = "holds", "illusion", "wrong", "open"  # or NOT_TESTABLE


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
    kinds = _kinds(run)
    found = list(kinds.values())
    illusions = run.judged.filter(pl.col("verdict").is_in(ILLUSIONS))
    fooled = set(illusions["simplification"])

    def proxies(verdict: str) -> set[str]:
        return set(run.judged.filter(verdict=verdict)["simplification"])

    by_split = [(name, illusions.filter(pl.col("split") == name).height) for name in run.ood]
    by_split.sort(key=lambda pair: -pair[1])
    return Headline(
        proxies=len(run.proxies),
        holds=found.count(HOLDS),
        illusions=found.count(ILLUSION),
        wrong=found.count(WRONG),
        open=found.count(OPEN),
        untestable=found.count(NOT_TESTABLE),
        under=len(proxies(UNDER)),
        over=len(proxies(OVER)),
        mixed=len(proxies(MIXED)),
        partly=len(proxies(UNDECIDED) & fooled),
        degrade=len(proxies(DEGRADES)),
        hit=[f"{split_label(name)} {n}" for name, n in by_split if n],
        spared=[split_label(name) for name, n in by_split if not n],
        reference=split_label(run.reference),
    )


def _kinds(run: Findings) -> dict[str, str]:
    """By proxy what all its verdicts together come to."""
    verdicts: dict[str, list[str | None]] = {proxy.simplification: [] for proxy in run.proxies}
    for name, verdict in run.judged.select("simplification", "verdict").iter_rows():
        verdicts[name].append(verdict)
    return {name: _kind(found) for name, found in verdicts.items()}


def _kind(verdicts: Collection[str | None]) -> str:
    if NOT_TESTABLE in verdicts:
        return NOT_TESTABLE
    if any(verdict in ILLUSIONS for verdict in verdicts):
        return ILLUSION
    if set(verdicts) <= {DEGRADES, UNFAITHFUL}:
        return WRONG
    return HOLDS if set(verdicts) == {FAITHFUL} else OPEN


class Cell(NamedTuple):
    """What was found of a proxy on a split."""

    split: str
    verdict: str | None
    needed: int | None


def standings(run: Findings) -> list[Standing]:
    """Of every family of proxies, by size and split, what its verdicts come to."""
    columns = ("simplification", *Cell._fields)
    rows: dict[str, list[Cell]] = {}
    for name, *row in run.judged.select(columns).iter_rows():
        rows.setdefault(name, []).append(Cell(*row))
    return [_standing(run, title, proxies, rows) for title, proxies in run.families.items()]


def _standing(
    run: Findings, title: str, proxies: Sequence[NamedProxy], rows: Mapping[str, Sequence[Cell]]
) -> Standing:
    trust: dict[str, list[NamedProxy]] = {}
    distrust: dict[tuple[str, str], list[NamedProxy]] = {}
    open_: dict[str, list[NamedProxy]] = {}
    asked: dict[str, list[int | None]] = {}
    for proxy in proxies:
        cells = rows.get(proxy.simplification, ())
        by_verdict = {v: [c.split for c in cells if c.verdict == v] for v in {*VERDICTS, None}}
        if splits := by_verdict[FAITHFUL]:
            where = _where(run, splits)
            if len(splits) < len(run.ood) and not where.startswith("all but"):
                where += " only"
            trust.setdefault(where, []).append(proxy)
        for verdict in ILLUSIONS:
            if splits := by_verdict[verdict]:
                distrust.setdefault((verdict, _where(run, splits)), []).append(proxy)
        undecided = [cell for cell in cells if cell.verdict in (UNDECIDED, None)]
        if undecided and (splits := by_verdict[DEGRADES]):  # it may look right on iid, or not
            where = f"{_where(run, splits)} (worse there)"
            distrust.setdefault((DEGRADES, where), []).append(proxy)
        elif by_verdict[UNFAITHFUL] or by_verdict[DEGRADES]:
            where = f"anywhere (not right even on {split_label(run.reference)})"
            distrust.setdefault((UNFAITHFUL, where), []).append(proxy)
        if undecided:
            where = _where(run, [cell.split for cell in undecided])
            open_.setdefault(where, []).append(proxy)
            asked.setdefault(where, []).extend(cell.needed for cell in undecided)

    def named(some: Sequence[NamedProxy], where: str) -> str:
        return f"{sizes}: {where}" if (sizes := rows_of(some, proxies)) else where

    return Standing(
        title,
        [named(some, where) for where, some in trust.items()],
        [
            f"{SIGNS[verdict]} {named(some, where)}"
            for (verdict, where), some in sorted(
                distrust.items(), key=lambda x: x[0][0] == UNFAITHFUL
            )
        ],
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
    return f"about {sequences(max(known))} in all"


def evidence(run: Findings) -> Evidence:
    """How many sequences, scored positions and models stand behind the verdicts."""
    same = run.whole.filter(
        pl.col("seed").is_null(),
        pl.col("metric") == "same_prediction",
        pl.col("method") != IDENTITY,
    )
    accuracy = run.whole.filter(
        pl.col("seed").is_null(), metric="model_accuracy", method=IDENTITY
    ).select("split", "value")
    right = dict(accuracy.iter_rows())
    splits = []
    for name in run.splits:
        cells = same.filter(split=name)
        exact = percent(right[name]) if name in right else "–"
        count, positions = (_range(cells[column]) for column in ("sequences", "tokens"))
        splits.append((split_label(name), count, positions, exact))
    seen = {text for _, text, *_ in splits}
    counted = (
        f"{seen.pop()} sequences" if len(seen) == 1 else f"{_range(same['sequences'])} sequences"
    )
    models = len(run.seeds)
    text = (
        f"Behind every verdict stand {counted} of each split, with {_range(same['tokens'])} scored "
    )
    text += "positions, and "
    text += (
        "one model, so that it speaks of that model alone."
        if models == 1
        else f"{models} models, trained alike but for their seeds: a verdict is what all agree "
        "on, and undecided where they do not."
    )
    if run.reference in right:
        whose = "The model is" if models == 1 else "The models are"
        text += f" {whose} right at {percent(right[run.reference])} of the positions of "
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
    if NOT_TESTABLE not in run.judged["verdict"]:  # or it would be said twice
        found.append(_trained_less(run))
    return [notice for notice in found if notice]


def _not_learnt(run: Findings) -> Notice | None:
    untestable = run.gaps.filter(verdict=NOT_TESTABLE)
    everything = untestable["seed"].is_null().any()
    seeds = untestable["seed"].drop_nulls().unique().sort().to_list()
    if not everything and not seeds:
        return None
    accuracy = run.whole.filter(
        pl.col("seed").is_null() if everything else pl.col("seed").is_in(seeds),
        metric="model_accuracy", method=IDENTITY, split=run.reference,
    )["value"].to_list()  # fmt: skip
    reference = split_label(run.reference)
    right = f"right at {listing([percent(x) for x in accuracy])} of the scored positions of "
    right += reference
    if asked := run.spec.get("audit", {}).get("learnt"):
        right += f"; what counts as having learnt is more than {threshold(asked)}"
    steps = run.spec.get("paper_steps")
    trained = (run.spec.get("training") or {}).get("steps")
    how = f" (this run: {trained:,} steps" if isinstance(trained, int) else ""
    if how:
        how += f"; the preset paper: {steps:,})" if steps else ")"
    if not everything:
        which = f"seed{'s' if len(seeds) > 1 else ''} {listing(seeds)}"
        return Notice(
            f"The model of {which} has not learnt the task" if len(seeds) == 1
            else f"The models of {which} have not learnt the task",
            f"{'It is' if len(seeds) == 1 else 'They are'} {right}. Numbers over all seeds have "
            f"{'it' if len(seeds) == 1 else 'them'} in; train for longer{how}.",
        )  # fmt: skip
    return Notice(
        "The model has not learnt the task",
        f"It is {right}. Whether a view of it holds cannot be told from that: every verdict is "
        f"“{NOT_TESTABLE}”, and no number here says anything for or against a view. What is "
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
