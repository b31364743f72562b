"""Exchange what is needed to audit a Hugging Face model, and put everything back as it was."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from torch import nn
from torch.nn import functional

from anamorph.models.huggingface.attention import attention_forward
from anamorph.models.huggingface.calls import Block, block_forward, module_forward
from anamorph.models.huggingface.ports import hook_ports
from anamorph.models.wrapped import still

NAME = "anamorph"  # of the attention implementation

GELUS = ("NewGELUActivation", "FastGELUActivation")
"""Activations of transformers that spell GELU's tanh approximation out, in eight passes over the
widest tensor of a block. torch has it in one."""


def exchange(model: nn.Module, blocks: Sequence[Block], attention: bool) -> Callable[[], None]:
    """Set a model's attention function, wrap its blocks, and leave training mode.

    Args:
        model: of transformers.
        blocks: of it.
        attention: whether its attention function is set; otherwise it keeps its own.

    Returns:
        what undoes all of it.
    """
    _register()
    undo: list[Callable[[], None]] = [still(model)]
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        own = getattr(config, "_attn_implementation_internal", NAME)
        if attention and own != NAME:  # configs are shared
            undo.append(_set(config, "_attn_implementation_internal", NAME))
        if _is_gelu(module):
            undo.append(_set(module, "forward", partial(functional.gelu, approximate="tanh")))
    wrapped: set[nn.Module] = set()  # some blocks share modules
    for block in blocks:
        undo.append(_set(block.module, "forward", block_forward(block, block is blocks[-1])))
        if block.attention is not None and block.attention not in wrapped:
            wrapped.add(block.attention)
            forward = module_forward(block.attention, block.attends)
            undo.append(_set(block.attention, "forward", forward))
    undo.append(hook_ports(blocks))

    def back() -> None:
        while undo:
            undo.pop()()

    return back


def _is_gelu(module: nn.Module) -> bool:
    """Whether it is such an activation, and nobody has put another forward in its place."""
    kind = type(module)
    ours = kind.__name__ in GELUS and kind.__module__ == "transformers.activations"
    return ours and "forward" not in vars(module)


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
