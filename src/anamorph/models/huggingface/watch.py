"""A block, watched while it runs: what its submodules take and give, and what sums they form."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from anamorph.machine.devices import in_float64
from anamorph.models.wrapped import same_up_to_rounding

NEAR = 0.05  # of a sum, by how much its parts may miss it before a closer look
HUGE = 100.0  # times the median size of a stream
LARGE = 512.0  # beside a number of this size, what a norm adds to a variance is nothing


@dataclass
class Seen:
    """A submodule that ran.

    Attributes:
        path: its name in the block.
        module: itself.
        arguments: what it was given by place and by name, as it was then.
        before: how many tensors had been seen when it started.
        taken: its first argument, as it was then; None if that is no residual stream.
        gave: what it gave.
        out: the same, as it was then; None if that is no residual stream.
        times: how often it ran.
    """

    path: str
    module: nn.Module
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    before: int = 0
    taken: Tensor | None = None
    gave: Any = None
    out: Tensor | None = None
    times: int = 0


@dataclass
class Watch:
    """What was seen while a block ran.

    Attributes:
        given: [batch, position, width] the residual stream that the block was given.
        out: [batch, position, width] what the block gave.
        streams: every tensor of that size that a submodule was given or gave, in their order.
        modules: the submodules, in the order in which they ended.
    """

    given: Tensor
    out: Tensor = field(init=False)
    streams: list[Tensor] = field(default_factory=list)
    modules: list[Seen] = field(default_factory=list)

    @classmethod
    def of(cls, module: nn.Module, given: Tensor, run: Callable[[], Tensor]) -> "Watch":
        """Watch a module, such as a block, that runs once with a stream and gives a tensor."""
        watch = cls(given.clone())
        watch.streams.append(watch.given)
        with ExitStack() as hooks:
            for path, part in module.named_modules():
                if part is not module:
                    seen = Seen(path, part)
                    before, after = partial(watch._starts, seen), partial(watch._ends, seen)
                    taken = part.register_forward_pre_hook(before, with_kwargs=True)
                    hooks.callback(taken.remove)
                    hooks.callback(part.register_forward_hook(after).remove)
            watch.out = run().clone()
        return watch

    def _starts(
        self, seen: Seen, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        seen.arguments = tuple(map(_copy, given)), {k: _copy(x) for k, x in named.items()}
        found = [self.stream(x) for x in (*given, *named.values())]
        self.streams += [x for x in found if x is not None]
        seen.before, seen.taken = len(self.streams), found[0] if found else None
        seen.times += 1

    def _ends(self, seen: Seen, module: nn.Module, given: Any, out: Any) -> None:
        seen.gave, seen.out = out, self.stream(out)
        if seen.out is not None:
            self.streams.append(seen.out)
        if seen.times == 1:
            self.modules.append(seen)

    def stream(self, x: Any) -> Tensor | None:
        """A copy of `x` in the shape of the residual stream, if it has its size."""
        x = x[0] if isinstance(x, (tuple, list)) and x else x
        shape = self.given.shape
        if not torch.is_tensor(x) or x.shape[-1:] != shape[-1:]:
            return None
        return x.clone().reshape(shape) if x.numel() == shape.numel() else None

    @property
    def once(self) -> list[Seen]:
        """The submodules that ran once and gave a residual stream, in the order they ended."""
        return [seen for seen in self.modules if seen.times == 1 and seen.out is not None]

    def is_by_position(self, seen: Seen) -> bool:
        """Whether a submodule works position by position: what it gives at one comes from there."""
        if seen.out is None:
            return True  # nothing that could be added

        def other(x: Any) -> Any:
            """Something else at the first position."""
            if not torch.is_tensor(x) or (changed := self.stream(x)) is None:
                return x
            changed[:, 0] = changed[:, 0].flip(-1) + 1
            return changed.view(x.shape)

        again = self._again(seen, other)
        return again is not None and same_up_to_rounding(again[:, 1:], seen.out[:, 1:])

    def is_norm(self, seen: Seen) -> bool:
        """Whether a submodule, with none in it, gives the same of what it takes and twice that."""
        if seen.taken is None or seen.out is None or any(seen.module.children()):
            return False
        sizes = seen.taken.abs().amax(dim=-1)
        # The least of all positions: in some models, the first token's stream is a thousandfold.
        size = float(sizes[sizes > 0].min()) if bool(sizes.any()) else LARGE
        most = torch.finfo(seen.taken.dtype).max / 4 / max(float(sizes.max()), 1.0)

        def times(factor: float) -> Callable[[Any], Any]:
            scale = factor * min(LARGE / size, most)
            return lambda x: x * scale if torch.is_tensor(x) and x.is_floating_point() else x

        once, twice = (self._again(seen, times(factor)) for factor in (1.0, 2.0))
        if once is None or twice is None or not bool(once.any()):
            return False
        return same_up_to_rounding(twice, once)

    def _again(self, seen: Seen, change: Callable[[Any], Any]) -> Tensor | None:
        """What a submodule gives with other arguments; None if no stream, or nothing."""
        given, named = seen.arguments
        try:
            out = seen.module(*map(change, given), **{k: change(x) for k, x in named.items()})
        except Exception:  # it needs more than it was given
            return None
        return self.stream(out)


def scales_in(total: Tensor, stream: Tensor, parts: list[Tensor]) -> list[float] | None:
    """With what to multiply the parts so that they and the stream give the total; None if not so.

    Found by least squares; none of the numbers is 0, and those that are whole are whole. Where the
    stream is huge, as in a few columns of large models, the total is rounded too much to help.
    """
    missing = in_float64(total - stream).flatten()
    matrix = torch.stack([in_float64(part).flatten() for part in parts], dim=1)
    size = in_float64(stream).flatten().abs()
    if bool((huge := size > HUGE * size.median()).any()):
        missing, matrix = missing[~huge], matrix[~huge]
    square = (matrix.T @ matrix).cpu()
    if not bool(square.diagonal().all()):
        return None
    found = (torch.linalg.pinv(square) @ (matrix.T @ missing).cpu()).tolist()
    near = 2e-3 if total.dtype in (torch.float16, torch.bfloat16) else 1e-4
    scales = [float(round(x)) if abs(x - round(x)) < near else x for x in found]
    if not all(scales):
        return None
    rest = missing - matrix @ torch.tensor(scales, dtype=matrix.dtype, device=matrix.device)
    if float(rest.norm()) > NEAR * float(missing.norm()):  # far off, without a closer look
        return None
    fitted = stream + sum(scale * part for scale, part in zip(scales, parts, strict=True))
    return scales if same_up_to_rounding(fitted, total) else None


def same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether both are there, on one device, and hold the same numbers."""
    return a is not None and b is not None and a.device == b.device and torch.equal(a, b)


def _copy(x: Any) -> Any:
    return x.clone() if torch.is_tensor(x) else x
