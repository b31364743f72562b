"""The rows of a run's tables, as they are before the terminal or a document dresses them."""

from typing import NamedTuple

import polars as pl

from anamorph.analysis import controls
from anamorph.analysis.findings import IDENTITY, Findings
from anamorph.analysis.reported import EXPLAINED, SAME, lines
from anamorph.analysis.summary import headline, standings
from anamorph.analysis.words import SIGNS, split_label
from anamorph.faithfulness.gaps import (
    LOOKS_WRONG,
    NOT_TESTABLE,
    UNCLEAR,
    UNDECIDED,
    UNFAITHFUL,
)
from anamorph.faithfulness.metrics import JUDGED

LEGEND = ", ".join(f"{sign} {verdict}" for verdict, sign in SIGNS.items() if sign)
REPORTED = "What others report, beside the share of same predictions"
MOST_REPORTED = 6  # proxies
AT_REFERENCE = {LOOKS_WRONG: UNFAITHFUL, UNCLEAR: UNDECIDED}  # whose signs stand for these levels
STANDING = ("view", "trust", "do not trust", "needs more data")


class Number(NamedTuple):
    """A number with its interval, if it has one."""

    value: float
    low: float | None
    high: float | None


def legend(found: Findings) -> str:
    """What the marks beside shares say."""
    return (
        f"{LEGEND}; no mark: faithful; on {split_label(found.reference)}, against which gaps are "
        "measured, × does not look right and ? is open"
    )


def of_models(found: Findings, metric: str) -> dict[int | None, list[Number]]:
    """A metric of the models themselves: a number for each split, by seed; None is all seeds."""
    columns = ("seed", "split", *Number._fields)
    rows = found.whole.filter(metric=metric, method=IDENTITY).select(columns)
    by_place = {(seed, split): Number(*number) for seed, split, *number in rows.iter_rows()}
    seeds = rows["seed"].unique(maintain_order=True)
    return {seed: [by_place[seed, split] for split in found.splits] for seed in seeds}


def of_proxies(found: Findings) -> dict[str, list[tuple[float, str | None]]]:
    """By spec string the share of same predictions over all models, and the verdict, a split.

    On the reference, which has none, it is `UNFAITHFUL` of what does not look right there, and
    `UNDECIDED` where that is open.
    """
    same = found.pooled.filter(pl.col("method") != IDENTITY, metric=JUDGED)
    judged = found.judged.select("simplification", "split", "verdict", "level")
    verdicts: dict[tuple[str, str], str | None] = {}
    for name, split, verdict, level in judged.iter_rows():
        verdicts[name, split] = verdict
        if verdict != NOT_TESTABLE:
            verdicts[name, found.reference] = AT_REFERENCE.get(level)
    table = {}
    for (name,), some in same.group_by("simplification", maintain_order=True):
        values = dict(some.select("split", "value").iter_rows())
        table[str(name)] = [(values[s], verdicts.get((name, s))) for s in found.splits]
    return table


def of_controls(found: Findings) -> list[str]:
    """What controls say of the families to show, a sentence each."""
    said = controls.said(found).items()
    return [f"{title}: {text}" for title, text in said if title in found.telling_families]


def of_views(found: Findings) -> list[tuple[list[str], ...]]:
    """The families to show: title, and texts for each other column of `STANDING`.

    Empty if nothing can be judged.
    """
    counted = headline(found)
    if not found.ood or counted.untestable == counted.proxies:
        return []
    shown = (s for s in standings(found) if s.title in found.telling_families)
    return [([s.title], s.trust, s.distrust, s.open) for s in shown]


def of_reported(found: Findings) -> list[tuple[str, str, list[str]]]:
    """Proxy, what a number is called, and its texts, one a split.

    Of the most telling proxies that have more than an explained variance.
    """
    some = [each for each in lines(found) if set(each.lines) - {EXPLAINED, SAME}]
    return [
        ("" if place else each.simplification, called, texts)
        for each in some[:MOST_REPORTED]
        for place, (called, texts) in enumerate(each.lines.items())
    ]
