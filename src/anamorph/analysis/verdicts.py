"""The verdicts in sentences, family by family."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import polars as pl

from anamorph.analysis import controls
from anamorph.analysis.findings import Findings, NamedProxy
from anamorph.analysis.words import listing, percent, points, sequences, split_label, threshold
from anamorph.faithfulness import gaps

DIRECTIONS = {
    gaps.UNDER: "under-generalizes: it fails where the model is right",
    gaps.OVER: "over-generalizes: it is right where the model fails",
    gaps.MIXED: "errs in both directions",
}

Row = dict[str, Any]  # of `Findings.judged`


class Sentence(NamedTuple):
    """A family of proxies and what was found of it.

    `tone` is faithful, illusion, unfaithful, undecided or untestable.
    """

    title: str
    text: str
    tone: str


def sentences(run: Findings) -> list[Sentence]:
    """A few sentences for every family of views that was judged, those of its controls last."""
    found, of_controls = [], controls.said(run)
    for title, proxies in run.families.items():
        cells = {p: run.cells[p.simplification] for p in proxies if p.simplification in run.cells}
        if cells:
            sentence = _sentence(run, title, cells)
            text = f"{sentence.text} {of_controls.get(title, '')}".rstrip()
            found.append(sentence._replace(text=text))
    return found


def _sentence(run: Findings, title: str, rows: dict[NamedProxy, list[Row]]) -> Sentence:
    if any(row["verdict"] == gaps.NOT_TESTABLE for of_one in rows.values() for row in of_one):
        said = "Not testable here: the model has not learnt the task."
        return Sentence(title, said, "untestable")
    levels = {proxy: of_one[0]["level"] for proxy, of_one in rows.items()}
    right = [proxy for proxy, level in levels.items() if level == gaps.LOOKS_RIGHT]
    unclear = [proxy for proxy, level in levels.items() if level == gaps.UNCLEAR]
    if not right and not unclear:
        return Sentence(title, _wrong(run, rows), "unfaithful")
    text, tone = _right(run, right, rows) if right else ("", "undecided")
    if unclear:
        text = f"{text} {_unclear(run, unclear, rows)}".lstrip()
        if any(row["verdict"] in gaps.ILLUSIONS for proxy in unclear for row in rows[proxy]):
            tone = "illusion"
    return Sentence(title, text, tone)


def _wrong(run: Findings, rows: dict[NamedProxy, list[Row]]) -> str:
    """Of a family of which nothing looks right."""
    best = max(rows, key=lambda proxy: rows[proxy][0]["iid"])
    at = f" ({best.row})" if best.size_name else ""
    asked = threshold(run.thresholds.faithful)
    reference = split_label(run.reference)
    text = f"Does not look right even on {reference}: {percent(rows[best][0]['iid'])} same "
    text += f"predictions{' at best' if len(rows) > 1 else ''}{at}, below the {asked} asked for."
    cells = [row for of_one in rows.values() for row in of_one]
    if degrading := [row for row in cells if row["verdict"] == gaps.DEGRADES]:
        text += f" Worse still {_places(run, degrading, list(rows))}."
    return text


def _right(
    run: Findings, right: list[NamedProxy], rows: dict[NamedProxy, list[Row]]
) -> tuple[str, str]:
    """Of the proxies that look right, and the tone of that."""
    proxies = list(rows)
    least = min(rows[proxy][0]["iid"] for proxy in right)
    text = f"Looks right on {split_label(run.reference)}{which_of(right, proxies)} "
    text += f"({'at least ' if len(right) > 1 else ''}{percent(least)} same predictions)"
    of_right = [row for proxy in right for row in rows[proxy]]
    illusions = [row for row in of_right if row["verdict"] in gaps.ILLUSIONS]
    holding = [p for p in right if {row["verdict"] for row in rows[p]} == {gaps.FAITHFUL}]
    every = "every split" if len(run.ood) > 1 else split_label(run.ood[0])
    if not illusions and len(holding) == len(right):
        return f"{text}, and is faithful on {every}.", "faithful"
    parts = []
    if illusions:
        parts.append(f"{text}, but is an illusion {_places(run, illusions, right)}.")
        parts.append(_largest(run, illusions, proxies, len(of_right)))
    undecided = [row for row in of_right if row["verdict"] not in (*gaps.ILLUSIONS, gaps.FAITHFUL)]
    if undecided:
        said = f"undecided {_places(run, undecided, right)}: {_asked(undecided)}."
        parts.append(f"U{said[1:]}" if illusions else f"{text}. Whether it holds is {said}")
    if holding:
        parts.append(f"Faithful on {every}{which_of(holding, proxies)}.")
    return " ".join(parts), "illusion" if illusions else "undecided"


def _unclear(run: Findings, unclear: list[NamedProxy], rows: dict[NamedProxy, list[Row]]) -> str:
    """Of the proxies of which it is open whether they look right."""
    values = [rows[proxy][0]["iid"] for proxy in unclear]
    ends = (min(values), max(values))[: len(values)]
    found = " to ".join(percent(value) for value in ends)
    asked = threshold(run.thresholds.faithful)
    text = f"Whether it looks right on {split_label(run.reference)}{which_of(unclear, list(rows))} "
    text += f"is open: the interval of {found} same predictions holds the {asked} asked for."
    of_unclear = [row for proxy in unclear for row in rows[proxy]]
    if undecided := [row for row in of_unclear if row["verdict"] == gaps.UNDECIDED]:
        text += f" {_asked(undecided).capitalize()}."
    if worse := [row for row in of_unclear if row["change"] == gaps.WORSE]:
        text += f" It is worse {_places(run, worse, unclear)}, and so not to be trusted there."
    return text


def _asked(rows: Sequence[Row]) -> str:
    """How many sequences would decide all that is open."""
    known = [row["needed"] for row in rows if row["needed"] is not None]
    if len(known) < len(rows):
        return f"more sequences alone would not decide{' all of it' if known else ''}"
    return f"about {sequences(max(known))} of each split would decide"


def _largest(
    run: Findings, illusions: Sequence[Row], proxies: Sequence[NamedProxy], looked_at: int
) -> str:
    """The largest gap, with the interval that holds although it was picked as the largest.

    Of several models, with what it is in each: a verdict is what they agree on.
    """
    row = max(illusions, key=lambda row: row["gap"])
    proxy = next(p for p in proxies if p.simplification == row["simplification"])
    at = f"at {proxy.row} " if proxy.size_name and len(proxies) > 1 else ""
    of = f" of {looked_at}" if looked_at > 1 else ""
    text = f"The largest gap{of} cells is" if of else "The gap is"
    text += f" {points(row['gap'])} points"
    if len(run.seeds) > 1:
        each = run.gaps.filter(
            pl.col("seed").is_not_null(),
            **{key: row[key] for key in ("metric", "simplification", "split")},
        )["gap"].to_list()
        text += f", from {points(min(each))} to {points(max(each))} in the {len(each)} models"
    elif row["low_all"] is not None:
        text += f" [{points(row['low_all'])}, {points(row['high_all'])}]"
    text += f", {at}on {split_label(row['split'])} ({percent(row['iid'])} → {percent(row['ood'])})"
    return f"{text}: it {DIRECTIONS[row['verdict']]}."


def _places(run: Findings, rows: Sequence[Row], proxies: Sequence[NamedProxy]) -> str:
    """On which splits the rows are, with their sizes where these are not all of the proxies'.

    Such as "on near", or "up to rank 8 on near and at rank 2 on far".
    """
    splits: dict[tuple[NamedProxy, ...], list[str]] = {}
    for split in run.ood:
        names = {row["simplification"] for row in rows if row["split"] == split}
        if some := tuple(proxy for proxy in proxies if proxy.simplification in names):
            splits.setdefault(some, []).append(split_label(split))
    texts = []
    for some, on in splits.items():
        which = "" if len(some) == len(proxies) else which_of(some, proxies)
        texts.append(f"{which} on {listing(on)}".strip())
    return listing(texts)


def which_of(some: Sequence[NamedProxy], proxies: Sequence[NamedProxy]) -> str:
    """Which sizes, with a space in front: " from rank 8 on"; "" where there is no size."""
    some, proxies = list(some), list(proxies)
    name = some[0].size_name
    if not name:
        return ""
    if len(some) == len(proxies) > 1:
        return f" at every {f'number of {name}' if name.endswith('s') else name}"
    if len(some) > 1 and some == proxies[-len(some) :]:
        return f" from {some[0].row} on"
    if len(some) > 1 and some == proxies[: len(some)]:
        return f" up to {some[-1].row}"
    return f" at {listing([proxy.row for proxy in some])}"
