"""What several runs differ in: the axis along which they are looked at."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

from anamorph.analysis.findings import Findings
from anamorph.analysis.sides import Side
from anamorph.analysis.words import listing
from anamorph.errors import AnamorphError
from anamorph.runs.folder import Run
from anamorph.runs.varied import Varied, is_varied, setting_text, settings_text
from anamorph.store import Address, address_of

SEED = "seed"
SECTIONS = ("task", "model", "training", "audit")  # of a specification, that an axis may be of
FOLLOWS = ("splits", "data", "tokenizer", "files", "vocabulary")  # follow from other settings
MOST_VALUES = 6  # of a setting, in an error

Settings = dict[str, Any]
Asked = Run | Address | str


@dataclass(frozen=True)
class Point:
    """The models of a run, or one of them, at a place on the axis.

    Attributes:
        side: the models.
        settings: what may differ from those of other points, by name such as `training.steps`.
        value: on the axis: a number, or text.
        rest: the other settings that differ, in words; "" if there are none.
    """

    side: Side
    settings: Settings
    value: float | str = ""
    rest: str = ""

    @cached_property
    def found(self) -> Findings:
        """What its run found."""
        return Findings(self.side.run.path, self.side.run.spec)

    @property
    def seed(self) -> int | None:
        """As its rows in tables have it; a run of one model has the rows of all models alone."""
        return self.side.seed if len(self.side.run.seeds) > 1 else None

    @property
    def text(self) -> str:
        """Its value as it is shown."""
        return setting_text(self.value)


@dataclass(frozen=True)
class Axis:
    """An axis and the points along it, in its order.

    Attributes:
        name: such as `training.steps`, `model` or `seed`.
        points: by value, those of other settings beside each other.
        notes: what must be known of it, a sentence each.
    """

    name: str
    points: tuple[Point, ...]
    notes: tuple[str, ...]

    @property
    def numeric(self) -> bool:
        """Whether its values are numbers."""
        return all(not isinstance(point.value, str) for point in self.points)

    @property
    def ordered(self) -> bool:
        """Whether its order means anything: that of seeds does not."""
        return self.name != SEED

    @property
    def values(self) -> list[float | str]:
        """In their order."""
        return list(dict.fromkeys(point.value for point in self.points))


def axis_of(runs: Sequence[Asked], asked: str | None = None) -> Axis:
    """Find what runs differ in.

    Args:
        runs: run folders; folders of one of their models, such as `runs/a/seed-0`; folders of
            studies along an axis; or runs that are open.
        asked: what the axis is, where they differ in several settings.

    Raises:
        AnamorphError: if they differ in nothing, in several settings with none named, or not in the
            one that is named; or if two of them stand at the same place.
    """
    points, notes, recorded = _points(runs)
    if not points:
        raise AnamorphError(
            f"No run to look at: {' '.join(notes) or 'none was given'}. Give the folders of "
            "finished runs."
        )
    differing = _differing(points)
    if asked is None and recorded and differing:
        asked = next(iter(points[0].settings))
    name = _named(points, differing, asked)
    if name == SEED:
        points = [
            replace(point, side=_of_seed(point.side.run, s), value=s)
            for point in points
            for s in point.side.seeds
        ]
    else:
        points = [replace(point, value=point.settings[name]) for point in points]
    others = {key: values for key, values in differing.items() if key != name}
    rest = [key for key in others if not _follows(points, key)]
    points = [
        replace(p, rest=settings_text({key: p.settings.get(key, "–") for key in rest}))
        for p in _plain(points)
    ]
    if also := [key for key in others if key not in rest]:
        notes.append(f"With {name}, {listing(also)} differ{'s' if len(also) == 1 else ''} too.")
    points = _sorted(points)
    _refuse_doubles(name, points)
    return Axis(name, tuple(points), tuple([*notes, *_other_data(points)]))


def _of_seed(run: Run, seed: int) -> Side:
    return Side(str(run.seed(seed)), run, (seed,))


def _points(runs: Sequence[Asked]) -> tuple[list[Point], list[str], bool]:
    """All runs that are meant; which are not finished; whether all are of folders along one axis.

    Then their settings are those that were varied, the axis first.
    """
    points, notes, names = [], [], set()
    for address in runs:
        if not isinstance(address, Run) and is_varied(folder := address_of(address)):
            varied = Varied.read(folder)
            names.add(tuple(varied.vary))
            for name, values in varied.studies.items():
                path = folder / name
                if (path / "results.parquet").exists() and (path / "gaps.parquet").exists():
                    points.append(Point(Side.at(path), dict(values)))
                else:
                    notes.append(f"{path} is not finished, and is left out.")
        else:
            side = Side.at(address)
            names.add(())
            points.append(Point(side, settings_of(side.run)))
    recorded = len(names) == 1 and () not in names
    if not recorded:
        points = [replace(p, settings=settings_of(p.side.run) | p.settings) for p in points]
    return points, notes, recorded


def settings_of(run: Run) -> Settings:
    """What a specification says that an axis may be of, by names such as `training.steps`."""
    spec = run.spec
    if spec.get("training") is None:  # of a model that was given: its options, if files have them
        source = spec.get("source") or {"model": (spec.get("model") or {}).get("name")}
        return _flat("", {key: x for key, x in source.items() if key != "simplify"})
    return {k: v for part in SECTIONS for k, v in _flat(f"{part}.", spec.get(part) or {}).items()}


def _flat(prefix: str, values: Mapping[str, Any]) -> Settings:
    found: Settings = {}
    for key, value in values.items():
        if isinstance(value, dict) and key not in FOLLOWS:
            found |= _flat(f"{prefix}{key}.", value)
        elif key not in FOLLOWS or not prefix:
            found[f"{prefix}{key}"] = value
    return found


def _differing(points: Sequence[Point]) -> dict[str, list[str]]:
    """By name the settings that differ, and their values as text."""
    names = dict.fromkeys(name for point in points for name in point.settings)
    found = {}
    for name in names:
        values = list(dict.fromkeys(json.dumps(p.settings.get(name)) for p in points))
        if len(values) > 1:
            found[name] = values
    return found


def _named(points: Sequence[Point], differing: Mapping[str, list[str]], asked: str | None) -> str:
    """The name of the axis."""
    if asked is not None:
        known = {name for point in points for name in point.settings}
        if asked == SEED or (asked in known and all(asked in p.settings for p in points)):
            return asked
        near = get_close_matches(asked, known, n=1)
        raise AnamorphError(
            f"The runs have no setting {asked!r}{f'; did you mean {near[0]!r}?' if near else '.'} "
            f"They differ in: {_listed(differing) or 'nothing but their seeds'}."
        )
    if len(differing) == 1:
        return next(iter(differing))
    if not differing:
        seeds = [seed for point in points for seed in point.side.seeds]
        if len(set(seeds)) > 1:
            return SEED
        raise AnamorphError(
            "The runs do not differ in any setting, so there is no axis. Give runs of other "
            "settings, or of several seeds."
        )
    raise AnamorphError(
        f"The runs differ in several settings: {_listed(differing)}. Say which is the axis, such "
        f"as --axis {next(iter(differing))}."
    )


def _listed(differing: Mapping[str, list[str]]) -> str:
    texts = []
    for name, values in differing.items():
        more = f", … {len(values)} in all" if len(values) > MOST_VALUES else ""
        texts.append(f"{name} ({', '.join(values[:MOST_VALUES])}{more})")
    return "; ".join(texts)


def _follows(points: Sequence[Point], key: str) -> bool:
    """Whether a setting is the same wherever the value on the axis is."""
    found: dict[str, set[str]] = {}
    for point in points:
        found.setdefault(str(point.value), set()).add(json.dumps(point.settings.get(key)))
    return all(len(values) == 1 for values in found.values())


def _plain(points: Sequence[Point]) -> list[Point]:
    """With values that are numbers, or else texts; of paths the last name, if that will do."""
    values = [point.value for point in points]
    if all(isinstance(x, int | float) and not isinstance(x, bool) for x in values):
        return list(points)
    texts = [x if isinstance(x, str) else json.dumps(x) for x in values]
    short = {text: Path(text).name or text for text in texts}
    if len(set(short.values())) == len(short):
        texts = [short[text] for text in texts]
    return [replace(point, value=text) for point, text in zip(points, texts, strict=True)]


def _sorted(points: Sequence[Point]) -> list[Point]:
    """Numbers from low to high; texts in the order in which they were given."""
    if any(isinstance(point.value, str) for point in points):
        order = list(dict.fromkeys(point.value for point in points))
        return sorted(points, key=lambda point: order.index(point.value))
    return sorted(points, key=lambda point: float(point.value))


def _refuse_doubles(name: str, points: Sequence[Point]) -> None:
    seen: dict[tuple[float | str, str], Point] = {}
    for point in points:
        before = seen.setdefault((point.value, point.rest), point)
        if before is not point:
            raise AnamorphError(
                f"{before.side.name} and {point.side.name} stand at the same place: both have "
                f"{name} {point.text}{f' with {point.rest}' if point.rest else ''}. Give one of "
                "them, or another --axis."
            )


def _other_data(points: Sequence[Point]) -> list[str]:
    """That the data of a split are not the same everywhere."""
    prints: dict[str, set[str]] = {}
    for point in points:
        data = (point.side.run.spec.get("fingerprints") or {}).get("data") or {}
        for split, digest in data.items():
            prints.setdefault(split, set()).add(digest)
    other = [split for split, digests in prints.items() if len(digests) > 1]
    shown = [split for split in points[0].side.splits if split in other]
    if not shown:
        return []
    return [f"The sequences of {listing(shown)} are not the same in all runs."]
