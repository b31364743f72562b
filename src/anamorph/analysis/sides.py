"""What is compared: models of two runs, their proxies, and whether their data are the same."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import polars as pl

from anamorph.analysis.findings import IDENTITY
from anamorph.analysis.words import listing
from anamorph.errors import AnamorphError
from anamorph.faithfulness.metrics import find_metric
from anamorph.runs.folder import Run, load_run
from anamorph.runs.sums import scored_sequences
from anamorph.store import Address, address_of

SEED = re.compile(r"seed-(\d+)")
WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".npz")
MOST_NAMED = 12  # proxies in an error


@dataclass(frozen=True)
class Side:
    """The models of a run, or one of them.

    Attributes:
        name: as it was given.
        run: the run.
        seeds: of the models.
    """

    name: str
    run: Run
    seeds: tuple[int, ...]

    @classmethod
    def at(cls, address: Run | Address | str) -> Self:
        """A run, its folder, or the folder `seed-N` of one of its models.

        Raises:
            AnamorphError: if there is no run; says what to do with two models.
        """
        if isinstance(address, Run):
            return cls(str(address.path), address, tuple(address.seeds))
        path = address_of(address)
        _refuse_a_model(path)
        of_seed = SEED.fullmatch(path.name)
        if of_seed and not (path / "spec.json").exists():
            run, seed = load_run(path.parent), int(of_seed[1])
            if seed not in run.seeds:
                raise AnamorphError(
                    f"{run.path} has no model of seed {seed}; it has {listing(run.seeds)}."
                )
            return cls(str(address), run, (seed,))
        run = load_run(path)
        return cls(str(address), run, tuple(run.seeds))

    @property
    def seed(self) -> int | None:
        """As its rows in tables have it: None stands for all models together."""
        return self.seeds[0] if len(self.seeds) == 1 else None

    @property
    def stopped(self) -> bool:
        """Whether cells could stop early, so that how many sequences each saw depends on them."""
        return self.run.spec.get("audit", {}).get("until") is not None

    @cached_property
    def results(self) -> pl.DataFrame:
        """Its numbers of whole splits: those of the model itself, and what compares proxies."""
        whole = self._own(self.run.results).filter(pl.col("facet").is_null())
        return whole.filter((pl.col("method") == IDENTITY) == _of_model(whole))

    @cached_property
    def gaps(self) -> pl.DataFrame:
        """Its gaps, but for those of the model itself, which are the same for every proxy."""
        gaps = self._own(self.run.gaps)
        return gaps.filter(~_of_model(gaps))

    def _own(self, table: pl.DataFrame) -> pl.DataFrame:
        return table.filter(pl.col("seed").eq_missing(self.seed))

    @property
    def splits(self) -> list[str]:
        """In the order of the tables, the reference first."""
        return self.results["split"].unique(maintain_order=True).to_list()

    @property
    def reference(self) -> str | None:
        """The split that gaps are measured against."""
        names = self.results.filter(role="iid")["split"]
        return None if names.is_empty() else str(names[0])

    @property
    def proxies(self) -> list[str]:
        """Spec strings, but for the model itself."""
        some = self.results.filter(pl.col("method") != IDENTITY)
        return some["simplification"].unique(maintain_order=True).to_list()


def _of_model(table: pl.DataFrame) -> pl.Expr:
    """Whether a row is of a metric that speaks of the model alone."""
    names = table["metric"].unique().to_list()
    return pl.col("metric").is_in([m for m in names if find_metric(m).about == "model"])


def _refuse_a_model(path: Address) -> None:
    """Two models are compared by an audit, with one as the other's proxy."""
    if path.is_file() and SEED.fullmatch(path.parent.name):
        raise AnamorphError(f"{path} is the model of a run; give its folder, {path.parent}.")
    models = path.is_file() and path.suffix.lower() in WEIGHTS
    if path.is_dir() and not (path / "spec.json").exists() and not SEED.fullmatch(path.name):
        models = (path / "config.json").exists()
    if models:
        raise AnamorphError(
            f"{path} is a model, and runs are compared here. To see how far a model agrees with "
            f"another, audit the other with it as a proxy: anamorph audit --model OTHER --simplify "
            f"'model({path})' --data iid=… --data ood:NAME=… --out …; or, for the models of a run, "
            f"anamorph audit RUN --simplify 'model({path})' --out …."
        )


def matched(first: Side, second: Side, named: Mapping[str, str]) -> pl.DataFrame:
    """Which proxy stands beside which: those of the same spec string, and those that are named.

    Args:
        first: whose spec strings are the keys of `named`.
        second: whose spec strings are its values.
        named: blanks do not matter.

    Returns:
        columns simplification, simplification_b; the model itself is the first row.

    Raises:
        AnamorphError: if a proxy that is named is not there, or if there is no pair.
    """
    pairs = {name: name for name in first.proxies if name in second.proxies}
    pairs |= {_known(first, a): _known(second, b) for a, b in named.items()}
    if not pairs:
        raise AnamorphError(
            f"{first.name} and {second.name} have no proxy of the same spec. {_has(first)} "
            f"{_has(second)} Say which stands beside which: --proxy 'SPEC=SPEC', the first of "
            f"{first.name}; in Python proxies={{spec: spec}}."
        )
    names = [IDENTITY, *(name for name in first.proxies if name in pairs)]
    others = [pairs.get(name, name) for name in names]
    return pl.DataFrame({"simplification": names, "simplification_b": others})


def _known(side: Side, asked: str) -> str:
    by_text = {"".join(name.split()): name for name in side.proxies}
    found = by_text.get("".join(asked.split()))
    if found is None:
        raise AnamorphError(f"{side.name} has no proxy {asked}. {_has(side)}")
    return found


def _has(side: Side) -> str:
    shown = side.proxies[:MOST_NAMED]
    more = len(side.proxies) - len(shown)
    return f"{side.name} has: {', '.join(shown)}{f' and {more} more' if more else ''}."


def named_pair(text: str, first: Side, second: Side) -> tuple[str, str]:
    """The two spec strings of `SPEC=SPEC`; specs hold `=` themselves.

    Raises:
        AnamorphError: if it cannot be read so.
    """
    cuts = [place for place, sign in enumerate(text) if sign == "="]
    known = [{"".join(name.split()) for name in side.proxies} for side in (first, second)]
    for cut in cuts:
        pair = text[:cut].strip(), text[cut + 1 :].strip()
        if all("".join(part.split()) in names for part, names in zip(pair, known, strict=True)):
            return pair
    raise AnamorphError(
        f"--proxy must be SPEC=SPEC, a proxy of {first.name} and one of {second.name}; got "
        f"{text!r}. {_has(first)} {_has(second)}"
    )


@dataclass(frozen=True)
class OtherData:
    """Why the numbers of a split cannot be paired by sequence.

    Attributes:
        split: its name.
        old: the runs that do not tell which sequences were scored.
        shared: sequences that are in both, if both tell it.
        of: how many each of the two has.
    """

    split: str
    old: tuple[Side, ...] = ()
    shared: int = 0
    of: tuple[int, int] = (0, 0)


def other_data(first: Side, second: Side, splits: Sequence[str]) -> list[OtherData]:
    """Of the splits that both have, those whose sequences are not known to be the same."""
    found = []
    for split in splits:
        old = [s for s in (first, second) if not s.run.sequences(split).exists()]
        if old:
            found.append(OtherData(split, tuple(old)))
            continue
        ours, theirs = (scored_sequences(s.run, split)["digest"] for s in (first, second))
        shared = sum((Counter(ours) & Counter(theirs)).values())
        if shared < max(len(ours), len(theirs)):
            found.append(OtherData(split, (), shared, (len(ours), len(theirs))))
    return found


def why_apart(first: Side, second: Side, found: Sequence[OtherData]) -> str:
    """What `other_data` found, in words; no sentence yet."""
    said = []
    differ = [f"{x.split!r} ({_of(x)})" for x in found if not x.old]
    if differ:
        said.append(f"{second.name} has other sequences than {first.name} on {', '.join(differ)}")
    if old := dict.fromkeys(side.name for x in found for side in x.old):
        said.append(
            f"{listing(list(old))} {'does' if len(old) == 1 else 'do'} not tell which sequences "
            "were scored, as in runs of earlier versions (delete results.parquet there and give "
            "the command of the run again: it makes the tables anew of the sums that it has)"
        )
    return "; ".join(said)


def _of(found: OtherData) -> str:
    ours, theirs = (f"{count:,}" for count in found.of)
    of = ours if ours == theirs else f"{ours} and {theirs}"
    return f"{found.shared:,} of {of} are shared"
