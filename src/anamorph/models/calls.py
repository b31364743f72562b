"""What is to happen while a Hugging Face model runs, and the wrapped parts of it that look it up.

A `Call` is one thread's, so that batches can run side by side in one model. Where there is none,
the wrapped parts do what they always do.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Optional

from torch import Tensor, nn

from anamorph.models.base import Edit, Key, Recording
from anamorph.models.sites import Site

if TYPE_CHECKING:
    from anamorph.models.attention import Attention

_thread = threading.local()


@dataclass(frozen=True)
class Block:
    """A block and where its parts are.

    Attributes:
        module: the block.
        attention: the module that calls the attention function; None if there is none that goes
            through the interface.
        projection: the output projection, if the attention module ends with it.
        mlp: the module whose output is the site `mlp`.
        as_tuple: whether the block gives a tuple, the residual stream first.
    """

    module: nn.Module
    attention: nn.Module | None
    projection: nn.Module | None
    mlp: nn.Module | None
    as_tuple: bool


@dataclass
class Call:
    """What is to happen while a model, or one block of it, runs.

    Attributes:
        edits: by kind, the replacements in this block.
        wanted: what of this block is recorded.
        record: where it is recorded.
        at: [batch, query] the rows of recorded patterns; None for all.
        shape: (copy, batch, position) of the residual stream, whose first two are one axis inside.
        attended: [copy, batch, position, width] stands in for what the attention module gives.
        replaced: stands in for what every block gives.
        listing: every block's arguments are put here instead of running it.
        probing: every block's output and attentions are put here.
        stop: stop behind the attention module, which is put into `attention`.
    """

    edits: Mapping[str, Edit] = field(default_factory=dict)
    wanted: Sequence[Key | Site] = ()
    record: Recording = field(default_factory=dict)
    at: Tensor | None = None
    shape: tuple[int, ...] = ()
    attended: Tensor | None = None
    replaced: Tensor | None = None
    listing: list[tuple[tuple[Any, ...], dict[str, Any]]] | None = None
    probing: list[tuple[Any, list["Attention"]]] | None = None
    seen: list["Attention"] = field(default_factory=list)
    stop: bool = False
    attention: Optional["Attention"] = None

    @staticmethod
    def now() -> Optional["Call"]:
        """This thread's."""
        return getattr(_thread, "call", None)

    def concerns(self, kind: str) -> bool:
        """Whether a kind is edited or recorded."""
        return kind in self.edits or any(key.kind == kind for key in self.wanted)

    def tap(self, kind: str, x: Tensor) -> Tensor:
        """Edit and record `x` [copy, batch, (head,) position, dim], all heads of it."""
        if kind in self.edits:
            x = self.edits[kind](x)
        self.keep(kind, x)
        return x

    def keep(self, kind: str, x: Tensor) -> None:
        """Record `x`, all heads of it."""
        for key in self.wanted:
            if key.kind == kind:
                head = key.head if isinstance(key, Site) else None
                self.record[key] = x if head is None else x[:, :, head]


@contextmanager
def current(call: Call) -> Iterator[None]:
    """Make a call this thread's."""
    before = Call.now()
    _thread.call = call
    try:
        yield
    finally:
        _thread.call = before


class Stop(Exception):
    """What was asked for is known; the rest of the model need not run."""


def block_forward(module: nn.Module, as_tuple: bool, last: bool) -> Callable[..., Any]:
    """A block's `forward`, in whose place another may be taken, its arguments listed, or neither.

    Args:
        module: the block.
        as_tuple: whether it gives a tuple, the residual stream first.
        last: whether no block follows.
    """
    original = module.forward

    def forward(*arguments: Any, **keywords: Any) -> Any:
        call = Call.now()
        if call is None:
            return original(*arguments, **keywords)
        if not arguments:
            hidden = keywords.pop("hidden_states")
            arguments = (hidden,)
        if call.replaced is not None:
            return (call.replaced,) if as_tuple else call.replaced
        if call.listing is not None:
            call.listing.append((arguments, keywords))
            if last:
                raise Stop
            return arguments if as_tuple else arguments[0]
        if call.probing is not None:
            before = len(call.seen)
            out = original(*arguments, **keywords)
            call.probing.append((out, call.seen[before:]))
            return out
        return original(*arguments, **keywords)

    return forward


def module_forward(module: nn.Module) -> Callable[..., Any]:
    """An attention module's `forward`, for which an output of our own may stand in."""
    original = module.forward

    def forward(*arguments: Any, **keywords: Any) -> Any:
        call = Call.now()
        if call is not None and call.attended is not None:
            return call.attended.flatten(0, 1), None
        out = original(*arguments, **keywords)
        if call is not None and call.stop and call.attention is not None:
            call.attention.given = out[0]
            raise Stop
        return out

    return forward


def mlp_hook(module: nn.Module, inputs: Any, out: Any) -> Any:
    """A forward hook that edits and records the output of an MLP."""
    call = Call.now()
    if call is None or not call.concerns("mlp"):
        return None
    x = out[0] if isinstance(out, tuple) else out
    edited = call.tap("mlp", x.view(*call.shape, -1)).view(x.shape)
    return (edited, *out[1:]) if isinstance(out, tuple) else edited
