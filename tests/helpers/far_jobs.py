"""Jobs for a cluster that go wrong, in ways that clusters know."""

import os
import time
import warnings
from pathlib import Path
from typing import Any

from anamorph.auditing.local import Lasting
from anamorph.errors import AnamorphError, RunFolderError
from anamorph.tasks.fitted_on import FittedOn
from commands import SOURCE

PATH = os.pathsep.join(map(str, (SOURCE, Path(__file__).parent)))
"""PYTHONPATH of workers that are to know this file, and this source."""


def noted(folder: Path) -> int:
    """How many calls there were before, of all processes."""
    number = len(list(folder.glob("try-*")))
    (folder / f"try-{number}-{os.getpid()}").touch()
    return number


def dies_once(folder: Path) -> str:
    if noted(folder) == 0:
        os._exit(1)
    return "alive"


def fails(folder: Path) -> None:
    raise RuntimeError(f"try {noted(folder)}")


def is_wrong(folder: Path) -> None:
    noted(folder)
    raise AnamorphError("The number is not finite.")


def is_another(folder: Path) -> None:
    noted(folder)
    raise Lasting("the model is another here.")


def slow_once(folder: Path) -> float:
    began = time.monotonic()
    if noted(folder) == 0:
        time.sleep(120)
    return time.monotonic() - began


def slow_and_wrong(folder: Path) -> None:
    noted(folder)
    time.sleep(2.5)
    raise AnamorphError("The number is not finite.")


def locked_twice(folder: Path) -> str:
    if noted(folder) < 2:
        raise RunFolderError("It is being worked on.")
    return "free"


def without_a_word(folder: Path) -> None:
    noted(folder)
    raise MemoryError


def warns(number: int) -> int:
    from anamorph.auditing.samples import _warn_of_few

    few: Any = {"train": [1, 2], "a": [1]}
    _warn_of_few({"train": FittedOn(), "a": FittedOn.read("iid")}, few, "train")
    warnings.warn("of another package", stacklevel=1)
    return number


def heavy(number: int) -> bytes:
    return bytes([number]) * 20_000_000


def read_only(shared: Any) -> tuple[int, bool]:
    """Of a shared object with one parameter: where it lies, and whether it is a view of a store."""
    weight = shared.get()
    return int(weight.numel()), not weight.detach().numpy().flags.owndata
