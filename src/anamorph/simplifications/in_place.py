"""The laws of a fitted simplification in a model's place: sequences, calls and threads."""

import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from anamorph.machine.process import as_found
from anamorph.machine.threads import side_by_side, torch_threads
from anamorph.simplifications.trial import (
    CHANGED,
    LENGTHS,
    Sequences,
    Trial,
    require,
    require_close,
)

SEED = 62_831
"""A state of random numbers that nobody sets by chance."""

CALLS = 40
"""How often it is called when two threads call it at once."""


def shape_stays(trial: Trial) -> None:
    """Of points and of sequences, in every dtype and on every device that there is."""
    fitted = trial.fitted()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            wanted = trial.points[-1].to(device, dtype)
            _require_like(fitted(*(x.to(wanted) for x in trial.given)), wanted)
            sequences = trial.sequences.like(wanted)
            like = sequences.given[0]
            if not trial.pattern:
                like = like.new_empty(*like.shape[:-1], trial.widths[-1])
            _require_like(sequences.mapped(fitted), like)


def _require_like(got: Tensor, wanted: Tensor) -> None:
    for what in ("shape", "dtype", "device"):
        before, after = getattr(wanted, what), getattr(got, what)
        require(before == after, f"{what} {before} becomes {after}")


def finite_stays(trial: Trial) -> None:
    """Of points and of sequences."""
    fitted = trial.fitted()
    for made in (trial.mapped(fitted), trial.sequences.mapped(fitted)):
        require(bool(made.isfinite().all()), "finite points become NaN or infinite")


def _future(trial: Trial) -> None:
    fitted = trial.fitted()
    one, other = (some.mapped(fitted) for some in (trial.sequences, trial.others))
    require_close(
        one[:, :CHANGED],
        other[:, :CHANGED],
        f"tokens and points from position {CHANGED} on change what is before",
    )
    if trial.pattern:
        require(not one.triu(1).any(), "a query attends to keys behind it")


def _padding(trial: Trial) -> None:
    fitted = trial.fitted()
    whole = trial.sequences.mapped(fitted)
    for number, length in enumerate(LENGTHS):
        alone = trial.sequences.alone(number, trial.pattern).mapped(fitted)[0]
        beside = whole[number, :length, : alone.shape[-1]]
        require_close(alone, beside, "alone and without padding, a sequence is mapped elsewhere")


def _rows(trial: Trial) -> None:
    fitted = trial.fitted()
    rows = torch.tensor([[length - 1, 1] for length in LENGTHS])
    some = trial.sequences.at(rows).mapped(fitted)
    whole = trial.sequences.mapped(fitted).take_along_dim(rows[..., None], dim=1)
    require_close(some, whole, "positions that come alone (`context.at`) are mapped elsewhere")


def _calls(trial: Trial) -> None:
    fitted = trial.fitted()
    learnt = {name: value.clone() for name, value in fitted.state_dict().items()}
    first = trial.sequences.mapped(fitted)
    held = dict(vars(fitted))  # what a first call makes for all others may stay
    trial.others.mapped(fitted)
    left = [name for name, value in vars(fitted).items() if held.get(name) is not value]
    again = trial.sequences.mapped(fitted)
    require(torch.equal(again, first), "a second call gives something else")
    after = fitted.state_dict()
    same = learnt.keys() == after.keys() and all(torch.equal(learnt[k], after[k]) for k in after)
    require(same, "a call changes what was learnt")
    require(not left, f"each call leaves {left}, where another thread's call would find it")


def _random_state(trial: Trial) -> None:
    def state() -> str:
        numpy = np.random.get_state(legacy=False)
        return repr((torch.get_rng_state().tolist(), random.getstate(), str(numpy)))

    with as_found():
        torch.manual_seed(SEED)
        np.random.seed(SEED)
        random.seed(SEED)
        before = state()
        trial.sequences.mapped(trial.fitted())
        require(state() == before, "it changes the state of the process's random numbers")


def _threads(trial: Trial) -> None:
    fitted = trial.fitted()

    def mapped(sequences: Sequences) -> Tensor:
        return sequences.mapped(fitted)

    calls = [trial.sequences, trial.others] * (CALLS // 2)
    with torch_threads(1):
        one, two = (list(side_by_side(mapped, calls, workers)) for workers in (1, 2))
    require(all(map(torch.equal, one, two)), "two threads at once get something else than one")


IN_PLACE: dict[str, Callable[[Trial], None]] = {
    "a call changes nothing": _calls,
    "no position sees its future": _future,
    "a padded batch gives the numbers of single sequences": _padding,
    "positions that come alone are mapped alike": _rows,
    "random numbers have a seed of their own": _random_state,
    "threads do not meet": _threads,
}
"""These laws by their text, in the order in which they are checked."""
