"""The hooks through which the tensors of a block pass that attention does not compute.

A norm's own hook comes first: a port may be what it gives.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor, nn

from anamorph.models.huggingface.calls import Block, Call
from anamorph.models.norms import Norm
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
