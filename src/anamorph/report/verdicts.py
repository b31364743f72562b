"""The verdicts in sentences."""

from typing import NamedTuple

import polars as pl

from anamorph.report.data import Proxy, Run
from anamorph.report.words import listing, percent, points, split_label, threshold

DIRECTIONS = {
    "illusion (under-generalizes)": "under-generalizes: it fails where the model is right",
    "illusion (over-generalizes)": "over-generalizes: it is right where the model fails",
    "illusion (mixed)": "errs in both directions",
}


class Headline(NamedTuple):
    """The counts that the page starts with, each a number of proxies.

    Attributes:
        proxies: all.
        looking: same prediction on the reference at or above the threshold.
        illusions: of those, an illusion on one ood split or more.
        under: of the illusions, under-generalizing on one split or more.
        over: over-generalizing on one split or more.
        mixed: erring in both directions on one split or more.
        everywhere: of those that look right, faithful on every split.
        hit: "unseen depth 5", ...: ood splits with their number of illusions, the most first.
        spared: ood splits without any.
        reference: the split that gaps are measured against.
    """

    proxies: int
    looking: int
    illusions: int
    under: int
    over: int
    mixed: int
    everywhere: int
    hit: list[str]
    spared: list[str]
    reference: str

    @property
    def sentence(self) -> str:
        """What was found, in one sentence."""
        if not self.hit and not self.spared:
            return f"Nothing can be judged: the data have no split beside {self.reference}."
        if not self.looking:
            return f"None of the {self.proxies} proxies looks right even in distribution."
        verb = "looks" if self.looking == 1 else "look"
        start = f"{self.looking} of {self.proxies} proxies {verb} right in distribution"
        if not self.illusions:
            return f"{start}, and no illusion was found."
        kind = "is an illusion" if self.illusions == 1 else "are illusions"
        return f"{start}; {self.illusions} of these {kind}."


class Sentence(NamedTuple):
    """A family of proxies and what was found of it; `tone` is faithful, illusion or unfaithful."""

    title: str
    text: str
    tone: str


def headline(run: Run) -> Headline:
    """Count the verdicts."""
    judged = run.judged.filter(pl.col("iid") >= run.thresholds["faithful"])
    illusions = judged.filter(pl.col("verdict").str.starts_with("illusion"))

    def proxies(frame: pl.DataFrame) -> int:
        return frame["simplification"].n_unique()

    by_split = [(name, illusions.filter(pl.col("split") == name).height) for name in run.ood]
    by_split.sort(key=lambda pair: -pair[1])
    return Headline(
        proxies=len(run.proxies),
        looking=proxies(judged),
        illusions=proxies(illusions),
        under=proxies(illusions.filter(pl.col("verdict").str.contains("under"))),
        over=proxies(illusions.filter(pl.col("verdict").str.contains("over-"))),
        mixed=proxies(illusions.filter(pl.col("verdict").str.contains("mixed"))),
        everywhere=proxies(judged) - proxies(illusions),
        hit=[f"{split_label(name)} {n}" for name, n in by_split if n],
        spared=[split_label(name) for name, n in by_split if not n],
        reference=split_label(run.reference),
    )


def sentences(run: Run) -> list[Sentence]:
    """One sentence or two for every family of proxies."""
    return [_sentence(run, title, proxies) for title, proxies in run.families.items()]


def _sentence(run: Run, title: str, proxies: list[Proxy]) -> Sentence:
    names = [proxy.simplification for proxy in proxies]
    judged = run.judged.filter(pl.col("simplification").is_in(names))
    iid = dict(judged.select("simplification", "iid").unique().iter_rows())
    looking = [p for p in proxies if iid.get(p.simplification, 0) >= run.thresholds["faithful"]]
    if not looking:
        best = max(proxies, key=lambda p: iid.get(p.simplification, 0))
        at = f" ({best.row})" if best.size_name else ""
        found = percent(iid.get(best.simplification, 0))
        text = f"Does not look right even on iid: {found} same predictions at best{at}"
        return Sentence(
            title,
            f"{text}, below the {threshold(run.thresholds['faithful'])} asked for.",
            "unfaithful",
        )

    text = f"Looks right on iid{_which(looking, proxies)}"
    least = min(iid[p.simplification] for p in looking)
    text += f" ({'at least ' if len(looking) > 1 else ''}{percent(least)} same predictions)"
    illusions = judged.filter(
        pl.col("verdict").str.starts_with("illusion"),
        pl.col("simplification").is_in([p.simplification for p in looking]),
    ).sort("gap", descending=True)
    if illusions.is_empty():
        text += ", and is faithful on every split"
        worst = judged.filter(
            pl.col("simplification").is_in([p.simplification for p in looking])
        ).sort("ood")
        if worst["ood"][0] < run.thresholds["faithful"]:
            # A verdict of faithful needs only that no significant gap was found.
            text += f", as no significant gap was found; still, only {percent(worst['ood'][0])} "
            text += f"on {split_label(worst['split'][0])}"
        return Sentence(title, f"{text}.", "faithful")
    fooled = [p for p in looking if p.simplification in set(illusions["simplification"])]
    where = [s for s in run.ood if s in set(illusions["split"])]
    when = _which(fooled, looking) if len(fooled) < len(looking) else ""
    text += f", but is an illusion{when} on {listing([split_label(s) for s in where])}. "
    text += _worst(illusions.row(0, named=True), {p.simplification: p for p in proxies})
    if len(fooled) < len(looking):
        rest = [p for p in looking if p not in fooled]
        text += f" Faithful on every split{_which(rest, proxies)}."
    return Sentence(title, text, "illusion")


def _worst(row: dict[str, object], proxies: dict[str, Proxy]) -> str:
    gap, low, high = row["gap"], row["low"], row["high"]
    iid, ood, verdict = row["iid"], row["ood"], str(row["verdict"])
    assert isinstance(gap, float) and isinstance(iid, float) and isinstance(ood, float)
    proxy = proxies[str(row["simplification"])]
    at = f"at {proxy.row} " if proxy.size_name and len(proxies) > 1 else ""
    text = f"The largest gap is {points(gap)} points"
    if isinstance(low, float) and isinstance(high, float):
        text += f" [{points(low)}, {points(high)}]"
    text += f", {at}on {split_label(str(row['split']))} ({percent(iid)} → {percent(ood)}): it "
    return f"{text}{DIRECTIONS.get(verdict, 'is an illusion')}."


def _which(some: list[Proxy], proxies: list[Proxy]) -> str:
    """Which sizes, with a space in front: " from rank 8 on"; "" where there is no size."""
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
