"""The kernels of Triton on a machine without a GPU."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from unittest import mock

KERNELS = "anamorph.faithfulness.kernels"


@contextmanager
def interpreted() -> Iterator[ModuleType]:
    """The module of the kernels, as run by Triton's interpreter.

    Triton decides when it is imported. So it is imported anew, whoever did so before in this
    process, and forgotten afterwards; what is compiled can be loaded only once and stays.
    """

    def forget() -> dict[str, ModuleType]:
        mine = [n for n in sys.modules if n == KERNELS or f"{n}.".startswith("triton.")]
        return {n: sys.modules.pop(n) for n in mine if not n.startswith("triton._C")}

    before = forget()
    with mock.patch.dict(os.environ, TRITON_INTERPRET="1"):
        try:
            yield import_module(KERNELS)
        finally:
            forget()
            sys.modules.update(before)
