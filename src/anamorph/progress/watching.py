"""Who watches where nobody was named: bars in a notebook, nobody elsewhere."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from anamorph.progress import Watch, ignore
from anamorph.progress.bars import Bars

KERNEL = "ZMQInteractiveShell"
"""IPython's shell in a kernel (Jupyter, VS Code, Colab), which shows what a terminal cannot."""


@contextmanager
def watching(watch: Watch | None) -> Iterator[Watch]:
    """Gives the watch; where it is None, one that shows bars in a notebook and nothing elsewhere.

    IPython is asked only if somebody has imported it, as every notebook does.
    """
    if watch is not None or not in_notebook():
        yield watch or ignore
        return
    bars = Bars(_Display())
    try:
        yield bars
    finally:
        bars.close()


def in_notebook() -> bool:
    """Whether this is an IPython kernel, and no terminal."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return any(kind.__name__ == KERNEL for kind in type(shell).__mro__)


class _Display:
    """An output of a notebook's cell that is replaced by what comes later."""

    def __init__(self) -> None:
        self._handle: Any = None

    def __call__(self, bundle: Mapping[str, str]) -> None:
        if self._handle is None:
            display = import_module("IPython.display").display
            self._handle = display(dict(bundle), raw=True, display_id=True)
        elif self._handle:
            self._handle.update(dict(bundle), raw=True)
