"""Exchange what is needed to audit a Hugging Face model, and put everything back as it was."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from torch import nn
from torch.nn import functional

from anamorph.models.attention import attention_forward
from anamorph.models.calls import Block, block_forward, mlp_hook, module_forward

NAME = "anamorph"  # of the attention implementation

GELUS = ("NewGELUActivation", "FastGELUActivation")
"""Activations of transformers that spell GELU's tanh approximation out, in eight passes over the
widest tensor of a block. torch has it in one."""


def exchange(model: nn.Module, blocks: Sequence[Block]) -> Callable[[], None]:
    """Set a model's attention function, wrap its blocks, and leave training mode.

    Returns:
        what undoes all of it.
    """
    _register()
    undo: list[Callable[[], None]] = []
    for module in model.modules():
        if module.training:
            undo.append(_set(module, "training", False))
        config: Any = getattr(module, "config", None)
        if getattr(config, "_attn_implementation_internal", NAME) != NAME:  # configs are shared
            undo.append(_set(config, "_attn_implementation_internal", NAME))
        if type(module).__name__ in GELUS:
            undo.append(_set(module, "forward", partial(functional.gelu, approximate="tanh")))
    for block in blocks:
        last = block is blocks[-1]
        undo.append(
            _set(block.module, "forward", block_forward(block.module, block.as_tuple, last))
        )
        if block.attention is not None:
            undo.append(_set(block.attention, "forward", module_forward(block.attention)))
        if block.mlp is not None:
            undo.append(block.mlp.register_forward_hook(mlp_hook).remove)

    def back() -> None:
        while undo:
            undo.pop()()

    return back


def _set(thing: Any, name: str, value: Any) -> Callable[[], None]:
    """Set an attribute of an instance; gives what puts the old one back, or takes it away."""
    if name in vars(thing):
        before = vars(thing)[name]
        setattr(thing, name, value)
        return lambda: setattr(thing, name, before)
    setattr(thing, name, value)
    return lambda: delattr(thing, name)


@cache
def _register() -> None:
    """Make the attention function known, with its mask function: without, causality would go."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
