"""Which submodule of a block gives what the block's MLP adds to the residual stream.

It is found by value: a block is watched while it runs, and its output has to be the stream as it
was before, plus the output of one submodule. Names only help to choose among several such.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from torch import Tensor, nn

from anamorph.models.huggingface.watch import Seen, Watch, scales_in
from anamorph.models.wrapped import same_up_to_rounding

MLP_NAMES = ("mlp", "feed_forward", "ffn", "fc2", "output.dense")
"""What MLPs, or the last matrices of them, are called in many models."""


@dataclass(frozen=True)
class Added:
    """The sum that a block ends with.

    Attributes:
        mlp: gives what the MLP adds.
        scale: what that is multiplied with.
        stream: [batch, position, width] what it is added to, without what `beside` adds.
        beside: gives what attention adds in the same sum; None if the stream has it already.
        beside_scale: what that is multiplied with.
        norm: takes the sum and gives what the block gives; None if the block gives the sum.
    """

    mlp: Seen
    scale: float
    stream: Tensor
    beside: Seen | None = None
    beside_scale: float = 1.0
    norm: Seen | None = None

    def ends(self, mlp: Tensor, beside: Tensor | None = None) -> Tensor:
        """What the block gives if its MLP and, in the same sum, attention add something else.

        Args:
            mlp: [batch, position, width] what the MLP adds.
            beside: [batch, position, width] what attention adds; None for what it added.
        """
        if self.beside is not None:
            assert self.beside.out is not None
            mlp = (self.beside_scale * self.beside.out if beside is None else beside) + mlp
        total = self.stream + mlp
        return total if self.norm is None else self.norm.module(total)


def find_mlp(watch: Watch, attention: nn.Module | None) -> Added | None:
    """What the MLP of a block adds, and to what; None where no submodule's output is that."""
    sums: list[tuple[Tensor, Seen | None]] = [(watch.out, None)]
    for seen in watch.modules:  # where a norm comes last, the sum is what it takes
        given = watch.stream(seen.arguments[0])
        last = seen.out is not None and same_up_to_rounding(seen.out, watch.out)
        if last and given is not None and not any(seen.module.children()):
            sums.append((given, seen))
    return next(filter(None, _candidates(watch, attention, sums)), None)


def _candidates(
    watch: Watch, attention: nn.Module | None, sums: list[tuple[Tensor, Seen | None]]
) -> Iterator[Added | None]:
    """What each submodule adds to a total, if it does, the likely ones first."""
    known = {seen.path: seen for seen in watch.once}
    named = [known[name] for name in MLP_NAMES if name in known]
    for seen, total in product(named, sums):
        yield _added_last(seen, *total, watch)
    attentions = _attentions(watch, attention)
    for seen in named:
        yield _added_beside(seen, *sums[0], watch, attentions)
    others = [seen for seen in known.values() if seen not in named and seen not in attentions]
    for seen, total in product(sorted(others, key=lambda seen: seen.path.count(".")), sums):
        yield _added_last(seen, *total, watch)
        yield _added_beside(seen, *total, watch, attentions)


def _added_last(seen: Seen, total: Tensor, norm: Seen | None, watch: Watch) -> Added | None:
    """The total as the sum of a submodule's output and a stream that was there before it."""
    assert seen.out is not None
    for stream in reversed(watch.streams[: seen.before]):
        scales = scales_in(total, stream, [seen.out]) if bool(stream.any()) else None
        if scales is not None:
            return Added(seen, scales[0], stream, norm=norm)
    return None


def _added_beside(
    seen: Seen, total: Tensor, norm: Seen | None, watch: Watch, attentions: list[Seen]
) -> Added | None:
    """The total as what the block was given and what attention and MLP add side by side."""
    assert seen.out is not None
    for attention in attentions:
        assert attention.out is not None
        scales = scales_in(total, watch.given, [seen.out, attention.out])
        if scales is not None:
            return Added(seen, scales[0], watch.given, attention, scales[1], norm)
    return None


def _attentions(watch: Watch, attention: nn.Module | None) -> list[Seen]:
    """The submodules that mix positions, or stand in one that does, and give a stream."""
    mixing = [s.path for s in watch.modules if s.module is attention or not watch.is_by_position(s)]
    mixing = [path for path in mixing if path not in MLP_NAMES]
    return [
        seen
        for seen in watch.modules
        if seen.out is not None
        and any(seen.path == path or seen.path.startswith(f"{path}.") for path in mixing)
    ]
