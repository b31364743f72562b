"""What the wrappers of other people's models have in common."""

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from anamorph.errors import AnamorphError
from anamorph.models.base import Edit, Model
from anamorph.models.fingerprint import fingerprint_of

TOLERANCE = 1e-4  # relative: run in another way a model may round differently, but not more


class Wrapped(Model):
    """Somebody's module; it is prepared for many runs, and afterwards as it was before.

    Attributes:
        module: the module itself.
    """

    module: nn.Module

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._lock = threading.Lock()
        self._users = 0
        self._undo: Callable[[], None]

    @property
    def device(self) -> torch.device:
        """Where the module's weights are."""
        tensors = chain(self.module.parameters(), self.module.buffers())
        return next((x.device for x in tensors), torch.device("cpu"))

    def fingerprint(self) -> dict[str, str]:
        """A digest of the module's weights, layer by layer."""
        return fingerprint_of(self.module)

    @abstractmethod
    def _prepare(self) -> Callable[[], None]:
        """Change the model as runs need it; gives what undoes that."""

    @contextmanager
    def session(self) -> Iterator[None]:
        """Prepare the model once for many runs; every method does it for itself otherwise."""
        with self._lock:
            if self._users == 0:
                self._undo = self._prepare()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._undo()

    def _check_length(self, tokens: Tensor) -> None:
        """Whether [batch, position] tokens fit the context.

        Raises:
            AnamorphError: if they do not.
        """
        length = tokens.shape[1]
        if self.context is not None and length > self.context:
            raise AnamorphError(
                f"A sequence of {length} tokens does not fit the model's context of "
                f"{self.context}; cut it, for instance with length={self.context}."
            )


def same_up_to_rounding(a: Tensor, b: Tensor | None) -> bool:
    """Whether two tensors have one shape and hold the same numbers, but for rounding."""
    if b is None or a.shape != b.shape:
        return False
    half = a.dtype in (torch.float16, torch.bfloat16)
    scale = max(1.0, float(b.abs().max()))
    return bool((a - b).abs().max() <= (2e-2 if half else TOLERANCE) * scale)


def rows_at(x: Tensor, at: Tensor) -> Tensor:
    """The positions `at` [batch, query] of x [copy, batch, (head,) position, dim]."""
    at = at[None, :, None] if x.dim() == 5 else at[None]
    return x.gather(-2, at[..., None].expand(*x.shape[:-2], -1, x.shape[-1]))


def copies_of(edits: Iterable[Edit]) -> int:
    """How many copies of the model some edits make, at least one."""
    return max((int(getattr(edit, "copies", 1)) for edit in edits), default=1)
