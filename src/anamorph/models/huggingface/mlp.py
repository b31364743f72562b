"""Which submodule of a block gives what the block's MLP adds to the residual stream.

It is found by value: a block is watched while it runs, and its output has to be the stream as it
was before, plus the output of one submodule. Names only help to choose among several such.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from anamorph.models.wrapped import same_up_to_rounding

MLP_NAMES = ("mlp", "feed_forward", "ffn", "fc2", "output.dense")
"""What MLPs, or the last matrices of them, are called in many models."""

NEAR = 0.05  # of a sum, by how much its parts may miss it before a closer look


@dataclass
class _Seen:
    """A submodule that ran.

    Attributes:
        path: its name in the block.
        module: itself.
        arguments: what it was given by place and by name, as it was then.
        before: how many tensors had been seen when it started.
        out: what it gave, as it was then; None if that is no residual stream.
        times: how often it ran.
    """

    path: str
    module: nn.Module
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    before: int = 0
    out: Tensor | None = None
    times: int = 0


@dataclass
class _Watch:
    """What was seen while a block ran.

    Attributes:
        shape: [batch, position, width] of the residual stream.
        streams: every tensor of that size that a submodule was given or gave, in their order.
        modules: the submodules, in the order in which they ended.
    """

    shape: torch.Size
    streams: list[Tensor] = field(default_factory=list)
    modules: list[_Seen] = field(default_factory=list)

    def stream(self, x: Any) -> Tensor | None:
        """A copy of `x` in the shape of the residual stream, if it has its size."""
        x = x[0] if isinstance(x, (tuple, list)) and x else x
        if not torch.is_tensor(x) or x.shape[-1:] != self.shape[-1:]:
            return None
        return x.clone().reshape(self.shape) if x.numel() == self.shape.numel() else None


def find_mlp(
    block: nn.Module, attention: nn.Module | None, run: Callable[[], Tensor], stream: Tensor
) -> tuple[nn.Module, float] | None:
    """The submodule that gives what the MLP of a block adds, and what it is multiplied with.

    Args:
        block: of the model.
        attention: the submodule that attends, if known.
        run: runs the block on the stream, and gives what it gives.
        stream: [batch, position, width] what it takes.

    Returns:
        None where no submodule's output is that.
    """
    with _watching(block, _Watch(stream.shape)) as watch:
        watch.streams.append(stream.clone())
        out = run()
    sums = [out]
    for seen in watch.modules:  # where a norm comes last, the sum is what it takes
        given = watch.stream(seen.arguments[0])
        last = seen.out is not None and same_up_to_rounding(seen.out, out)
        if last and given is not None and not any(seen.module.children()):
            sums.append(given)
    known = {seen.path: seen for seen in watch.modules if seen.times == 1 and seen.out is not None}
    named = [known[name] for name in MLP_NAMES if name in known]
    for seen, total in product(named, sums):
        if (scale := _added_last(seen, total, watch)) is not None:
            return seen.module, scale
    attentions = _attentions(watch, attention)
    for seen in named:
        if (scale := _added_beside(seen, out, watch, attentions)) is not None:
            return seen.module, scale
    others = [s for s in known.values() if s not in named and s not in attentions]
    for seen in sorted(others, key=lambda seen: seen.path.count(".")):
        for total in sums:
            scale = _added_last(seen, total, watch)
            if scale is None:
                scale = _added_beside(seen, total, watch, attentions)
            if scale is not None:
                return seen.module, scale
    return None


@contextmanager
def _watching(block: nn.Module, watch: _Watch) -> Iterator[_Watch]:
    """Watch every submodule of a block."""
    running: dict[str, _Seen] = {}

    def before(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            arguments = tuple(map(_copy, given)), {k: _copy(x) for k, x in named.items()}
            found = [watch.stream(x) for x in (*given, *named.values())]
            watch.streams += [x for x in found if x is not None]
            seen = running.setdefault(path, _Seen(path, module))
            seen.arguments, seen.before = arguments, len(watch.streams)
            seen.times += 1

        return hook

    def after(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, out: Any) -> None:
            seen = running[path]
            seen.out = watch.stream(out)
            if seen.out is not None:
                watch.streams.append(seen.out)
            if seen.times == 1:
                watch.modules.append(seen)

        return hook

    handles = []
    for path, module in block.named_modules():
        if module is not block:
            handles.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
            handles.append(module.register_forward_hook(after(path)))
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def _added_last(seen: _Seen, total: Tensor, watch: _Watch) -> float | None:
    """With what a submodule's output is multiplied in a sum with a stream that was there before.

    None if the total is no such sum.
    """
    assert seen.out is not None
    for stream in reversed(watch.streams[: seen.before]):
        scales = _fit(total, stream, [seen.out]) if bool(stream.any()) else None
        if scales is not None:
            return scales[0]
    return None


def _added_beside(
    seen: _Seen, total: Tensor, watch: _Watch, attentions: Sequence[_Seen]
) -> float | None:
    """The same in a sum of what the block was given and what attention and MLP add side by side."""
    assert seen.out is not None
    for attention in attentions:
        assert attention.out is not None
        scales = _fit(total, watch.streams[0], [seen.out, attention.out])
        if scales is not None:
            return scales[0]
    return None


def _fit(total: Tensor, stream: Tensor, parts: list[Tensor]) -> list[float] | None:
    """With what to multiply the parts so that they and the stream give the total; None if not so.

    Found by least squares; none of the numbers is 0, and those that are whole are whole.
    """
    missing = (total - stream).double().flatten()
    matrix = torch.stack([part.double().flatten() for part in parts], dim=1)
    square = (matrix.T @ matrix).cpu()
    if not bool(square.diagonal().all()):
        return None
    found = (torch.linalg.pinv(square) @ (matrix.T @ missing).cpu()).tolist()
    scales = [float(round(x)) if abs(x - round(x)) < 1e-4 else x for x in found]
    if not all(scales):
        return None
    rest = missing - matrix @ torch.tensor(scales, dtype=matrix.dtype, device=matrix.device)
    if float(rest.norm()) > NEAR * float(missing.norm()):  # far off, without a closer look
        return None
    fitted = stream + sum(scale * part for scale, part in zip(scales, parts, strict=True))
    return scales if same_up_to_rounding(fitted, total) else None


def _attentions(watch: _Watch, attention: nn.Module | None) -> list[_Seen]:
    """The submodules that mix positions, or stand in one that does, and give a stream."""
    mixing = [
        s.path for s in watch.modules if s.module is attention or not _is_by_position(s, watch)
    ]
    mixing = [path for path in mixing if path not in MLP_NAMES]
    return [
        seen
        for seen in watch.modules
        if seen.out is not None
        and any(seen.path == path or seen.path.startswith(f"{path}.") for path in mixing)
    ]


def _is_by_position(seen: _Seen, watch: _Watch) -> bool:
    """Whether a submodule works position by position: what it gives at one comes from there."""
    if seen.out is None:
        return True  # nothing that could be added
    batch, length, width = watch.shape

    def other(x: Any) -> Any:
        """Something else at the first position."""
        if not torch.is_tensor(x) or x.numel() != watch.shape.numel() or x.shape[-1] != width:
            return x
        changed = x.clone().reshape(batch, length, width)
        changed[:, 0] = changed[:, 0].flip(-1) + 1
        return changed.view(x.shape)

    given, named = seen.arguments
    try:
        out = seen.module(*map(other, given), **{name: other(x) for name, x in named.items()})
    except Exception:  # it needs more than it was given
        return False
    again = watch.stream(out)
    return again is not None and same_up_to_rounding(again[:, 1:], seen.out[:, 1:])


def _copy(x: Any) -> Any:
    return x.clone() if torch.is_tensor(x) else x
