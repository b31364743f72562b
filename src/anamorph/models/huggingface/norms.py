"""Which submodules are the norms of a Hugging Face model, and their scales: found by value."""

from dataclasses import replace
from itertools import product

import torch
from torch import Tensor, nn

from anamorph.models.huggingface.calls import Block
from anamorph.models.huggingface.watch import Seen, Watch, same
from anamorph.models.norms import Norm
from anamorph.models.sites import FINAL, NORM_KINDS
from anamorph.models.wrapped import same_up_to_rounding

IN_BLOCK = NORM_KINDS[:-1]
TORCH = 1e-5  # the epsilon of a layer_norm that is not told of any


def with_norms(block: Block, watch: Watch) -> Block:
    """A block that was watched, with its norms; those of queries and keys are left out."""
    within = set[nn.Module]()
    if block.heads is not None and block.heads.module is not block.module:
        within = set(block.heads.module.modules())
    seen = [s for s in watch.modules if s.module not in within and watch.is_norm(s)]
    found = [norm for norm in map(_norm_of, seen) if norm is not None]
    if any(s.times > 1 for s in seen):
        return replace(block, normless="a norm of theirs runs more than once in a block")
    if len(found) < len(seen):
        return replace(block, normless="the scale of a norm of theirs is none that is known")
    if not 0 < len(found) <= len(IN_BLOCK):
        return replace(block, normless=f"{len(found) or 'none'} of their submodules are norms")
    return replace(block, norms=dict(zip(IN_BLOCK, found, strict=False)))


def with_final_norm(blocks: list[Block], watch: Watch) -> list[Block]:
    """Blocks, the last with the norm that takes the stream behind it.

    Without the norms of all, if those of one are not known: nobody is to freeze half of them.

    Args:
        blocks: with the norms within.
        watch: of the model behind its blocks, and of the stream that it is given there.
    """
    seen = [s for s in watch.once if same(s.taken, watch.given) and watch.is_norm(s)]
    norms = [norm for norm in map(_norm_of, seen) if norm is not None]
    why = next((block.normless for block in blocks if block.normless), "")
    if not why and len({len(block.norms) for block in blocks}) > 1:
        why = "they have different numbers of norms"
    if not why and (len(norms) < len(seen) or len(norms) > 1):
        why = "behind the last one is a norm whose scale is none that is known, or several norms"
    if why:
        return [replace(block, norms={}, normless=why) for block in blocks]
    final = dict(zip((FINAL,), norms, strict=False))  # nothing where there is none
    return [*blocks[:-1], replace(blocks[-1], norms={**blocks[-1].norms, **final})]


def _norm_of(seen: Seen) -> Norm | None:
    """The norm that a submodule is; None if its scale is none that is known.

    Its epsilon must be among the numbers that it holds, or torch's own. Divided by the right scale,
    what it gives without its bias is linear in what it takes.
    """
    generator = torch.Generator().manual_seed(0)
    if seen.taken is None or not seen.arguments[0]:
        return None
    x, y = torch.randn(2, 1, 4, seen.taken.shape[-1], generator=generator).to(seen.taken)
    x, y = x + 1, 2 * y - 3
    numbers = [n for n in vars(seen.module).values() if isinstance(n, float) and n > 0]
    for eps, centred in product((*numbers, TORCH), (False, True)):
        norm, small = Norm(seen.module, eps, centred), eps**0.5
        try:
            parts = [_unscaled(norm, z) for z in (x, y, x + y, small * x)]
        except Exception:  # it needs more than it was given
            return None
        sums = parts[0] + parts[1], parts[0] * small
        if all(map(same_up_to_rounding, parts[2:], sums)):
            return norm
    return None


def _unscaled(norm: Norm, x: Tensor) -> Tensor:
    """What a norm gives, but for bias and scale; rounded as its output is."""
    out: Tensor = norm.module(x)
    return ((out - norm.bias(x)) / norm.scale(x)).to(out.dtype)
