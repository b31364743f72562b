"""The run folder: what a study leaves on disk, read by everybody through `Run`.

==================================  ===================================================
spec.json                           what was asked for, and where and with what it ran
plan.json                           how many works there are a model
seed-N/model.safetensors            the model; `history.parquet` beside it has its curves
seed-N/simplifications.safetensors  what was fitted to it
seed-N/fingerprints.json            digests of a trained model's weights
seed-N/works/SPLIT-*.parquet        per-sequence sums of some proxies on a split, computed together
sequences/SPLIT.parquet             which sequences these are, in their order
seed-N/noise.json                   the noise floor, and what batching alone does
seed-N/sites.parquet                what proxies do at their sites: explained variance, L0
seed-N/heads.parquet                scores of attention heads, if proxies edit single heads
seed-N/matching.parquet             how often heads attend the matching bracket, of Dyck
seed-N/views/*.parquet              what the report draws beside the numbers
results.parquet, gaps.parquet       every number, every gap and verdict
contrasts.parquet                   how levels of facets differ
claims.json, checks.json            the paper's claims as measured; the self-checks
report.html, figures/               the report
==================================  ===================================================

Every file appears whole or not at all, so that whatever is there can be trusted.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import count
from typing import Any, TypeVar

import polars as pl

from anamorph.errors import AnamorphError, RunFolderError
from anamorph.faithfulness.gaps import Thresholds
from anamorph.files import Copies, are_there, at_hand, file_name
from anamorph.runs.older import with_families, with_features
from anamorph.store import Address, address_of

_Json = TypeVar("_Json", dict[str, Any], list[Any])

TABLES = ("results.parquet", "gaps.parquet", "contrasts.parquet", "claims.json", "checks.json")
REQUIRED = ("study", "task", "model", "training", "simplify", "audit", "seeds", "threads")
AGAIN = (
    "If it is missing, the run is not finished: give its command again. If it is there, it is not "
    "a whole {kind} file: delete it first."
)
COLUMNS = {
    "results": "seed simplification method size sites split role facet level metric value low high "
    "interval tokens sequences",
    "gaps": "seed simplification method size sites split role metric reference iid ood gap low "
    "high low_all high_all p_value level change verdict needed",
    "contrasts": "seed simplification method size sites split role facet level metric value low "
    "high error tokens sequences",
    "history": "step tokens loss split accuracy cross_entropy",
    "heads": "seed layer head previous_token induction copying positional sequences",
    "sites": "seed simplification split role site explained_variance tokens sequences",
    "matching": "seed layer head split value positions",
}
SEQUENCES = "sequence digest length scored"
"""What each table has at least; a table without one of these was written by another version."""
PICTURES = {
    "functions": "simplification split sequence text jsd model proxy model_p proxy_p",
    "attended": "simplification split layer head facet true_level attended_level mass",
    "scatter": "layer head kind split position token component_1 component_2",
    "patterns": "simplification split sequence layer head query key weight",
    "sentences": "split sequence position token scored",
    "worst": "simplification split sequence rank number id value same_prediction length start "
    "separate token scored jsd same model_right proxy_right model model_p proxy proxy_p",
}
"""Likewise of the tables in `views/`, of which pictures are drawn."""


class Run:
    """A run folder: where its files lie, and what is in them.

    A table is read when it is first asked for, its columns are checked, and it is kept. What is
    made of a run while it goes on is therefore asked for when it has been written.

    Attributes:
        path: where it lies.
        spec: the content of `spec.json`.
    """

    def __init__(self, path: Address, spec: Mapping[str, Any]) -> None:
        self.path, self.spec = path, spec

    # Where things lie

    @property
    def complete(self) -> bool:
        """Whether the study came to its end, and nothing of it was deleted since."""
        made = [self.report, *(self.path / name for name in TABLES)]
        if self.spec.get("training"):
            made += map(self.model, self.spec["seeds"])
        return all(are_there(made))

    @property
    def report(self) -> Address:
        """Where the report lies."""
        return self.path / "report.html"

    def seed(self, seed: int) -> Address:
        """The folder of one model."""
        return self.path / f"seed-{seed}"

    def model(self, seed: int) -> Address:
        """Where a model that the run trained lies."""
        return self.seed(seed) / "model.safetensors"

    def work(self, seed: int, split: str, number: int) -> Address:
        """Where the sums of a work lie; see `anamorph.auditing.works`."""
        return self.seed(seed) / "works" / f"{file_name(split)}-{number:04d}.parquet"

    def sequences(self, split: str) -> Address:
        """Where it is told which sequences of a split were scored; `SEQUENCES` has the columns."""
        return self.path / "sequences" / f"{file_name(split)}.parquet"

    def works(self) -> list[Address]:
        """The files of all works that are done."""
        return [path for s in self.seeds for path in self.seed(s).glob("works/*.parquet")]

    def stored(self, seed: int, planned: Iterable[Address]) -> set[Address]:
        """Which works of a model are there, of those that are planned.

        The folder is listed once. A listing of a store may lag behind, so that a work that is not
        in it is asked for by its name.
        """
        works = list(planned)
        listed = {path.name for path in self.seed(seed).glob("works/*.parquet")}
        unlisted = [path for path in works if path.name not in listed]
        missing = {
            path for path, there in zip(unlisted, are_there(unlisted), strict=True) if not there
        }
        return {path for path in works if path not in missing}

    def works_of(self, seed: int, split: str) -> list[Address]:
        """The files of the works of a model on a split that are there, in their order.

        Of this split and no other, such as one that is called iid-0000. A work that a store does
        not list yet is asked for by its name, up to the first number that is not there.
        """
        named = re.compile(re.escape(file_name(split)) + r"-(\d{4,})\.parquet")
        files = (named.fullmatch(path.name) for path in self.seed(seed).glob("works/*.parquet"))
        listed = {int(match[1]) for match in files if match}
        found = []
        for number in count():
            path = self.work(seed, split, number)
            if number in listed or path.exists():
                found.append(path)
            elif number > max(listed, default=-1):
                return found
        raise AssertionError  # numbers have no end

    @cached_property
    def copies(self) -> Copies:
        """Files of the run that are read in parts, at hand."""
        return Copies()

    # What was asked for

    @property
    def seeds(self) -> list[int]:
        """Of the models."""
        return list(self.spec.get("seeds", ()))

    @property
    def trained(self) -> bool:
        """Whether the run trained its models itself, and holds them; else they were given to it."""
        return self.spec.get("training") is not None

    @property
    def thresholds(self) -> Thresholds:
        """Where the lines between verdicts were drawn."""
        return Thresholds(**self.spec.get("audit", {}).get("thresholds", {}))

    # What came out. Each raises a RunFolderError if a file is missing (but where it says what is
    # given then), is damaged, lacks a column, or holds a number that is not finite.

    @cached_property
    def results(self) -> pl.DataFrame:
        """Every number with its interval, one a row; see `anamorph.faithfulness.tabulate`."""
        return with_families(_table(self.path / "results.parquet"))

    @cached_property
    def gaps(self) -> pl.DataFrame:
        """Every generalization gap with its interval, p-value and verdict."""
        return with_families(_table(self.path / "gaps.parquet"))

    @cached_property
    def contrasts(self) -> pl.DataFrame:
        """How the levels of facets differ within a split."""
        return with_families(_table(self.path / "contrasts.parquet"))

    @cached_property
    def claims(self) -> list[dict[str, Any]]:
        """The paper's claims as measured here; empty if they were not."""
        path = self.path / "claims.json"
        return read_json(path, list) if path.exists() else []

    @cached_property
    def checks(self) -> dict[str, Any]:
        """The identity self-check and the noise floor; empty if they were not measured."""
        path = self.path / "checks.json"
        return read_json(path, dict) if path.exists() else {}

    @cached_property
    def history(self) -> pl.DataFrame | None:
        """The training curves of all seeds, with a column `seed`; None if nothing was trained."""
        return self._of_seeds("history")

    @cached_property
    def heads(self) -> pl.DataFrame | None:
        """Scores of attention heads, of all seeds; None if no proxy edits a single head."""
        found = self._of_seeds("heads")
        return None if found is None or found.is_empty() else found

    @cached_property
    def sites(self) -> pl.DataFrame | None:
        """What proxies do at their own sites, of all seeds; None in runs of earlier versions."""
        found = self._of_seeds("sites")
        return None if found is None else with_features(found)

    @cached_property
    def matching(self) -> pl.DataFrame | None:
        """How often heads attend the match, of all seeds; None if the task has no matches."""
        return self._of_seeds("matching")

    @property
    def pictures(self) -> dict[str, pl.DataFrame]:
        """What is drawn beside the numbers, by name (`PICTURES`), but for what is empty or missing.

        All are of one model, `picture_seed`.
        """
        return self._pictures[1]

    @property
    def picture_seed(self) -> int | None:
        """The first seed of which there are tables for pictures; None if there are none."""
        return self._pictures[0]

    @cached_property
    def _pictures(self) -> tuple[int | None, dict[str, pl.DataFrame]]:
        for seed in self.seeds:
            files = {name: self.seed(seed) / "views" / f"{name}.parquet" for name in PICTURES}
            tables = {name: _table(file) for name, file in files.items() if file.exists()}
            if found := {name: table for name, table in tables.items() if len(table)}:
                return seed, found
        return None, {}

    def _of_seeds(self, name: str) -> pl.DataFrame | None:
        """A table of every seed that has it, as one; None if none has."""
        files = {seed: self.seed(seed) / f"{name}.parquet" for seed in self.seeds}
        tables = [
            _table(file).with_columns(pl.lit(seed).alias("seed"))
            for seed, file in files.items()
            if file.exists()
        ]
        return pl.concat(tables, how="vertical_relaxed") if tables else None


def load_run(path: Address | str) -> Run:
    """Open a run folder to look at.

    Raises:
        AnamorphError: if it holds no run; a RunFolderError if it holds a damaged one.
    """
    path = address_of(path)
    if not (path / "spec.json").exists():
        raise AnamorphError(
            f"{path} holds no run: it has no spec.json. Give the folder that --out named."
        )
    spec = read_json(path / "spec.json", dict)
    missing = [key for key in REQUIRED if key not in spec]
    if missing:
        raise RunFolderError(
            f"{path / 'spec.json'} has no {', '.join(missing)}, so it does not describe a run; it "
            "is damaged or of another program. Put the right file back, or begin a new run."
        )
    return Run(path, spec)


def _table(file: Address) -> pl.DataFrame:
    """A table of a run, with the columns that one of its name has."""
    return read_table(file, (COLUMNS | PICTURES)[file.stem].split())


def read_table(path: Address, columns: Sequence[str] = ()) -> pl.DataFrame:
    """A Parquet file.

    Args:
        path: where it lies.
        columns: that it must have, unless it is empty.

    Raises:
        RunFolderError: if it is missing or damaged, lacks one of the columns, or holds a number
            that is not finite.
    """
    try:
        with at_hand(path) as file:
            table = pl.read_parquet(file, memory_map=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise RunFolderError(
            f"Cannot read {path}: {reason}. {AGAIN.format(kind='Parquet')}"
        ) from error
    missing = [name for name in columns if name not in table.columns]
    if missing and not table.is_empty():
        raise RunFolderError(
            f"{path} has no column {', '.join(missing)}; it has {', '.join(table.columns)}. It was "
            "written by another version: run the audit again."
        )
    broken = [c.name for c in table if c.dtype.is_float() and not c.is_finite().all()]
    if broken:
        raise RunFolderError(
            f"{path} has a NaN or an infinity in {', '.join(broken)}; expected numbers. Delete it, "
            "and the same command makes it again."
        )
    return table


def read_json(path: Address, kind: type[_Json]) -> _Json:
    """A JSON file.

    Args:
        path: where it lies.
        kind: what it holds: an object is a `dict`, an array a `list`.

    Raises:
        RunFolderError: if it is missing or damaged, or holds something else.
    """
    try:
        text = path.read_text("utf-8")
        found = json.loads(text)
    except RunFolderError:  # a store cannot be reached
        raise
    except (OSError, ValueError) as error:
        again = AGAIN.format(kind="JSON")
        if path.name == "spec.json":  # without which the rest cannot be told apart from other files
            again = (
                "Without it nothing in the folder can be used: delete the folder, or give another."
            )
        raise RunFolderError(f"Cannot read {path}: {error}. Expected JSON. {again}") from error
    if not isinstance(found, kind):
        raise RunFolderError(
            f"{path} holds a {type(found).__name__}; expected a {kind.__name__}. It is damaged: "
            "delete it, and the same command makes it again."
        )
    return found
