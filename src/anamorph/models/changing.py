"""A model with other matrices, for the runs of one thread, and what its modules are given.

The model's weights are never touched. In a session the `forward` of the modules concerned is
wrapped; in a run a stand-in with the new matrix works in a module's place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from anamorph.errors import AnamorphError
from anamorph.models.matrices import Matrix, stand_in

Seen = Callable[[nn.Module, Tensor], None]
"""Is told of a module, and of what it is given, [..., in]."""


class Changed:
    """New matrices in place of a model's own.

    Args:
        new: for every matrix that changes the new one, [out, in].

    Raises:
        AnamorphError: if two of them are the same numbers of a module.
    """

    def __init__(self, new: Mapping[Matrix, Tensor]) -> None:
        require_apart(new)
        by_module: dict[nn.Module, list[tuple[Matrix, Tensor]]] = {}
        for matrix, values in new.items():
            by_module.setdefault(matrix.module, []).append((matrix, values))
        self.names = {matrix.module: matrix.name for matrix in new}
        self.stand_ins = {module: stand_in(module, some) for module, some in by_module.items()}

    @contextmanager
    def session(self) -> Iterator[None]:
        """Prepare the modules once for many runs; afterwards they are as they were before."""
        with ExitStack() as undo:
            for module, other in self.stand_ins.items():
                undo.callback(_wrap(module, other))
            yield

    @contextmanager
    def running(self) -> Iterator[None]:
        """One run of the model, by this thread, with the new matrices.

        Raises:
            AnamorphError: if a module does not run exactly once.
        """
        run = _Run(self)
        token = _run.set(run)
        try:
            yield
        finally:
            _run.reset(token)
        for module, name in self.names.items():
            if run.fired[module] != 1:
                raise AnamorphError(
                    f"The matrix {name} was used {run.fired[module]} times in one run; expected "
                    "once. The model does not call the module that holds it as a module is "
                    "called, or calls it again, so nothing was measured."
                )


@dataclass(frozen=True)
class _Run:
    changed: Changed
    fired: Counter[nn.Module] = field(default_factory=Counter)


_run = ContextVar[_Run | None]("run", default=None)


def changed_now() -> Changed | None:
    """The matrices with which this thread runs a model; None for the model's own."""
    run = _run.get()
    return None if run is None else run.changed


def require_apart(matrices: Collection[Matrix]) -> None:
    """Refuse matrices of which two are the same numbers of a module.

    Raises:
        AnamorphError: names them.
    """
    taken: dict[tuple[nn.Module, int], Matrix] = {}
    for matrix in matrices:
        for row in range(matrix.outputs) if matrix.rows is None else matrix.rows.tolist():
            other = taken.setdefault((matrix.module, row), matrix)
            if other is not matrix:
                raise AnamorphError(
                    f"Two sites of one proxy change the same weights: {other.name} and "
                    f"{matrix.name}. Name each matrix once."
                )


def _wrap(module: nn.Module, other: nn.Module) -> Callable[[], None]:
    """Let another module work in a module's place where a run says so; gives what undoes it."""
    own, before = "forward" in vars(module), module.forward

    def forward(*given: Any, **named: Any) -> Any:
        run = _run.get()
        if run is None or run.changed.stand_ins.get(module) is not other:
            return before(*given, **named)
        run.fired[module] += 1
        return other.forward(*given, **named)

    module.forward = forward
    return partial(setattr, module, "forward", before) if own else partial(_without, module)


def _without(module: nn.Module) -> None:
    del module.__dict__["forward"]


@contextmanager
def watched(modules: Collection[nn.Module], seen: Seen) -> Iterator[None]:
    """Tell what modules are given while a model runs in this thread; afterwards no hook is left."""

    def on_input(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen(module, given[0] if given else next(iter(named.values())))

    with ExitStack() as undo:
        for module in modules:
            undo.callback(module.register_forward_pre_hook(on_input, with_kwargs=True).remove)
        yield
