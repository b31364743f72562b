"""The hooks through which the tensors of a block pass that attention does not compute.

A norm's own hook comes first: a port may be what it gives.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from anamorph.models.huggingface.calls import Block, Call
from anamorph.models.norms import Norm
from anamorph.models.sites import OF_HEADS
from anamorph.models.wrapped import Side, pass_through


def hook_ports(blocks: Iterable[Block]) -> ExitStack:
    """Hook the ports of some blocks, which may share modules; gives what takes the hooks away."""
    blocks, undo = list(blocks), ExitStack()
    for norm in {norm: None for block in blocks for norm in block.norms.values()}:
        hook = norm.module.register_forward_hook(partial(_through_norm, norm))
        undo.callback(hook.remove)
    places = {(port.module, port.side): None for block in blocks for port in block.ports.values()}
    for module, side in places:
        undo.callback(pass_through(module, side, partial(_through, module, side)))
    return undo


def parts_of(block: Block) -> dict[nn.Module, frozenset[str]]:
    """The block, and each submodule beside or around a site, with the kinds of sites within it.

    Where there is none, a submodule is a whole: what stands in it is left out. What lies at its own
    end, such as a port that is what it gives, does not lie within.
    """
    places = {kind: port.module for kind, port in block.ports.items()}
    places |= {kind: norm.module for kind, norm in block.norms.items()}
    parts, todo = dict[nn.Module, frozenset[str]](), [block.module]
    while todo:
        module = todo.pop()
        within = set(module.modules())
        inside = {kind for kind, x in places.items() if x is not module and x in within}
        attends = block.heads is not None and block.heads.module in within
        if not isinstance(module, torch.jit.ScriptModule):  # it has no other forward
            parts[module] = frozenset(inside | OF_HEADS if attends else inside)
        whole = not attends or (block.heads is not None and block.heads.module is module)
        if inside or not whole or isinstance(module, nn.ModuleList):
            todo += module.children()
    return parts


def _through_norm(norm: Norm, module: nn.Module, given: tuple[Any, ...], out: Tensor) -> Tensor:
    call = Call.now()
    return out if call is None else call.norm(norm, given[0], out)


def _through(module: nn.Module, side: Side, value: Any) -> Tensor | None:
    """What passes a module, edited and recorded; None where no site is concerned."""
    call = Call.now()
    if call is None:
        return None
    x: Tensor = value[0] if isinstance(value, (tuple, list)) else value
    passed = None
    for kind, port in call.ports.items():
        if port.module is not module or port.side != side or not call.tap.concerns(kind):
            continue
        before = x if passed is None else passed
        site = before.reshape(*call.shape, -1)
        site = site if port.scale == 1 else site * port.scale
        site = _onto_stream(call, kind, site) if port.onto_stream else call.tap(kind, site)
        # A copy, as some blocks add to it in place, and what is recorded must stay as it is.
        edited = kind in call.tap.here  # else the scale, there and back, would round
        passed = (site / port.scale).view(x.shape) if edited else before.clone()
    return passed


def _onto_stream(call: Call, kind: str, added: Tensor) -> Tensor:
    """What a block has to add to its stream so that the sum is what an edit makes of it.

    The stream is set to 0 where there is an edit, so that the sum is just that. A difference from
    the stream would be a number that the two leave over: in bfloat16 not even close.
    """
    assert call.stream is not None
    total = call.tap(kind, call.stream.view(added.shape) + added)
    if kind not in call.tap.here:
        return added
    call.stream.zero_()
    return total
