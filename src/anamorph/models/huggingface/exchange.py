"""Exchange what is needed to audit a Hugging Face model, and put everything back as it was."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from anamorph.models.huggingface.attention import Attention
from anamorph.models.huggingface.calls import Block, Call, Heads
from anamorph.models.huggingface.ports import hook_ports
from anamorph.models.huggingface.unembedding import padded
from anamorph.models.wrapped import device_of, still

NAME = "anamorph"  # of the attention implementation

GELUS = ("NewGELUActivation", "FastGELUActivation")
"""Activations of transformers that spell GELU's tanh approximation out, in eight passes over the
widest tensor of a block. torch has it in one."""

HALF = (torch.float16, torch.bfloat16)


def exchange(model: nn.Module, blocks: Sequence[Block], attention: bool) -> Callable[[], None]:
    """Wrap a model's blocks, set its attention function if asked to, and leave training mode.

    Returns:
        what undoes all of it.
    """
    _register()
    undo = ExitStack()
    undo.callback(still(model))
    # In half precision transformers' own, in many steps, rounds in another way than in one.
    exact = all(x.dtype not in HALF for x in model.parameters())
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        own = getattr(config, "_attn_implementation_internal", NAME)
        if attention and own != NAME:  # configs are shared
            undo.callback(_set(config, "_attn_implementation_internal", NAME))
        if exact and _is_gelu(module):
            undo.callback(_set(module, "forward", partial(functional.gelu, approximate="tanh")))
    head: Any = model
    head = head.get_output_embeddings()
    if (own := padded(head)) is not None and head.weight.device.type == "cuda":
        undo.callback(_set(head, "forward", own))
    shared = {block.heads.module: block.heads for block in blocks if block.heads is not None}
    parts: list[Block | Heads] = [*blocks, *shared.values()]
    inside = {module: None for block in blocks for module in block.parts}
    for module in inside.keys() - {part.module for part in parts}:
        undo.callback(_set(module, "forward", _forward(module)))
    spread = len({x.device for x in model.parameters()}) > 1
    for part in parts:
        undo.callback(_set(part.module, "forward", _forward(part)))
    for block in blocks if spread else ():
        undo.callback(_set(block.module, "forward", _moving(block.module)))
    undo.enter_context(hook_ports(blocks))
    return undo.close


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function: `[batch, head, position, dim]` to `[batch, position, head, dim]`.

    Raises:
        AnamorphError: if it is given something that changes what it computes in an unknown way.
    """
    call = Call.now() or Call()
    tensors, copies = (query, key, value), call.shape[0]
    attention = Attention.of(module, tensors, attention_mask, options, copies, call.alike)
    heads = call.attend(attention).transpose(2, 3)  # [copy, batch, position, head, dim]
    if call.tap.concerns("heads"):
        heads = call.tap("heads", heads.flatten(3)).unflatten(3, heads.shape[3:])  # type: ignore[no-untyped-call]
    return heads.flatten(0, 1).contiguous(), None


def _forward(part: Block | Heads | nn.Module) -> Callable[..., Any]:
    """The `forward` of a block or a part of it, which asks what is to happen."""
    original = part.forward if isinstance(part, nn.Module) else part.module.forward

    def forward(*arguments: Any, **keywords: Any) -> Any:
        call = Call.now()
        if call is None:
            return original(*arguments, **keywords)
        if isinstance(part, Block):
            return call.block(part, original, *arguments, **keywords)
        if isinstance(part, Heads):
            return call.attention(part, original, *arguments, **keywords)
        return call.part(part, original, *arguments, **keywords)

    return forward


def _moving(module: nn.Module) -> Callable[..., Any]:
    """The `forward` of a block of a model over several devices: what it is given, it has there.

    What moves things by itself does so behind it, where what a block is given is looked at already.
    """
    original, place = module.forward, device_of(module)

    def forward(*arguments: Any, **keywords: Any) -> Any:
        given = tree_map_only(Tensor, lambda x: x.to(place), (arguments, keywords))
        return original(*given[0], **given[1])

    return forward


def _is_gelu(module: nn.Module) -> bool:
    """Whether it is such an activation, and nobody has put another forward in its place."""
    kind = type(module)
    ours = kind.__name__ in GELUS and kind.__module__ == "transformers.activations"
    return ours and "forward" not in vars(module)


def _set(thing: Any, name: str, value: Any) -> Callable[[], None]:
    """Set an attribute of an instance; gives what puts the old one back, or takes it away."""
    own, before = name in vars(thing), vars(thing).get(name)
    setattr(thing, name, value)
    return lambda: setattr(thing, name, before) if own else delattr(thing, name)


@cache
def _register() -> None:
    """Make the attention function known, with its mask function: without, causality would go."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
