"""The command line in a process of its own."""

import os
import sys
from pathlib import Path
from typing import NamedTuple

import anamorph as am

COMMAND = (sys.executable, "-m", "anamorph")
SMOKE = (*COMMAND, "run", "dyck", "--preset", "smoke")
SOURCE = Path(am.__file__).parents[1]


def environment() -> dict[str, str]:
    """Of a command: one thread, this source, a wide terminal."""
    return os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


class Done(NamedTuple):
    """What a command that ran in this process ended with."""

    code: int
    out: str
    error: str
