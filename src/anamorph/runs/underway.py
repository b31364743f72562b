"""How far a run is that has not come to its end."""

import json
import struct
from typing import Any, NamedTuple

from anamorph.files import read_part, write_json
from anamorph.runs.folder import Run, read_json
from anamorph.runs.holder import Holder

PLAN = "plan.json"
AT_LAST = ("gaps.parquet", "results.parquet", "claims.json")
"""What is written when all works are done, in this order; all that a summary needs."""


class Underway(NamedTuple):
    """How far a run is, told from its files alone.

    Attributes:
        models: how many there are to be.
        trained: how many of them are there; None if they were given.
        steps: of those in training, by seed: the step of the last checkpoint.
        works: done, of all models.
        planned: works in all; None where no plan was written yet.
        missing: the files of `AT_LAST` that are not there.
        holder: who works in the folder, or did so last; None if it came to its end by itself.
        held: whether the holder still works; None if that cannot be told, or there is none.
    """

    models: int
    trained: int | None
    steps: dict[int, int]
    works: int
    planned: int | None
    missing: list[str]
    holder: Holder | None
    held: bool | None

    def as_dict(self) -> dict[str, Any]:
        """The same for programs: JSON values only."""
        holder = None if self.holder is None else self.holder._asdict()
        return {"complete": False, **self._asdict(), "holder": holder}

    @property
    def sentences(self) -> list[str]:
        """The same in words: how far it is; who is at it; and how it goes on."""
        of = "" if self.planned is None else f" of {self.planned:,}"
        parts = [f"{self.works:,}{of} works done"]
        if self.trained is not None:
            at = [f"seed {seed} at step {step:,}" for seed, step in self.steps.items()]
            parts = [f"{self.trained} of {self.models} models trained", *at, *parts]
        if self.planned is not None and self.works >= self.planned:
            parts.append(f"still without {', '.join(self.missing)}")
        said = [f"Not finished: {', '.join(parts)}."]
        if self.holder is None:
            return [*said, "Nobody works in it. The same command goes on from here."]
        if self.held:
            return [*said, f"At work in it: {self.holder}."]
        if self.held is None:
            unknown = f"Last at work in it: {self.holder}; whether it still is cannot be told here."
            return [*said, unknown, "If it has ended, the same command goes on from here."]
        ended = f"Nobody works in it: {self.holder} ended before it was done."
        return [*said, ended, "The same command goes on from here."]


def underway(run: Run) -> Underway | None:
    """How far a run is; None if all that it is to tell is there."""
    missing = [name for name in AT_LAST if not (run.path / name).exists()]
    if not missing:
        return None
    plan = run.path / PLAN
    holder = Holder.read(run.path)
    return Underway(
        models=len(run.seeds),
        trained=sum(run.model(s).exists() for s in run.seeds) if run.trained else None,
        steps={seed: step for seed in run.seeds if (step := _reached(run, seed)) is not None},
        works=len(run.works()),
        planned=read_json(plan, dict)["works"] * len(run.seeds) if plan.exists() else None,
        missing=missing,
        holder=holder,
        held=None if holder is None else holder.works(run.path),
    )


def _reached(run: Run, seed: int) -> int | None:
    """The step of a training's last checkpoint; None if there is none."""
    try:
        file = run.seed(seed) / "checkpoint.safetensors"
        (length,) = struct.unpack("<Q", read_part(file, 0, 8))
        (written,) = json.loads(read_part(file, 8, 8 + length))["__metadata__"].values()
        return int(json.loads(written)["progress"]["step"])
    except (OSError, struct.error, ValueError, KeyError):  # or it has just ended
        return None


def write_plan(run: Run, works: int) -> None:
    """Tell in the run folder how many works there are a model, for whoever asks how far it is."""
    write_json(run.path / PLAN, {"works": works})
