"""Where the parts of a Hugging Face model's blocks are, found by running it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from anamorph.errors import AnamorphError
from anamorph.models.huggingface.again import Attending, side_by_side
from anamorph.models.huggingface.attention import Attention
from anamorph.models.huggingface.calls import Block, Form, Given, Probing, current
from anamorph.models.huggingface.parts import with_ports

OUTSIDE = "what mixes positions there does not go through transformers' AttentionInterface"


class CannotSplit(Exception):
    """A model does not run block by block; says why, as the end of a sentence."""


def blocks_of(model: nn.Module, run: Callable[[], Any]) -> list[Block]:
    """The list of blocks of a model, about which nothing else is known yet.

    Args:
        model: of transformers.
        run: runs it on some tokens.

    Raises:
        AnamorphError: if it has none.
    """
    config: Any = model.config
    count = getattr(config.get_text_config(), "num_hidden_layers", None)
    lists: list[Any] = [
        m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count
    ]
    if not lists:
        raise AnamorphError(
            f"{type(model).__name__} has no list of {count or 'its'} blocks, as its configuration "
            "says, so it cannot run block by block. Decoders and encoders with one stack of blocks "
            "can; am.HookedModel takes any module."
        )
    if len(lists) > 1:  # as where pictures have blocks of their own
        ran = _running({module for modules in lists for module in modules}, run)
        lists = [x for x in lists if all(module in ran for module in x)] or lists
    return [Block(module) for module in max(lists, key=_size)]


def _running(modules: set[nn.Module], run: Callable[[], Any]) -> set[nn.Module]:
    """Those that run."""
    ran: set[nn.Module] = set()
    handles = [
        module.register_forward_hook(lambda module, inputs, out: ran.add(module))
        for module in modules
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return ran


def probe(
    blocks: list[Block], call: Probing, run: Callable[[], Any], tokens: Tensor
) -> list[Block]:
    """The same blocks with what is known once a model has run.

    Args:
        blocks: of a model that is exchanged.
        call: a new one.
        run: runs the model.
        tokens: [batch, position] on which it runs.

    Raises:
        CannotSplit: if the blocks do not follow each other, once each.
    """
    call.shape = (1, *tokens.shape)
    with current(call):
        run()
    if [module for module, *_ in call.blocks] != [block.module for block in blocks]:
        raise CannotSplit("its blocks do not run one after the other, once each")
    found = []
    for block, (_, given, out, attentions) in zip(blocks, call.blocks, strict=True):
        stream, form = given.stream, Form.of(out)
        if stream.shape[:2] != tokens.shape or form.first(out).shape != stream.shape:
            raise CannotSplit(
                f"its blocks take {list(stream.shape)} and give {list(form.first(out).shape)} for "
                f"tokens {list(tokens.shape)}; expected [batch, position, width]"
            )
        block = replace(block, form=form)
        if not attentions:
            block = replace(block, headless=OUTSIDE)
        elif len(attentions) > 1 or not _is_usual(attentions[0], tokens):
            block = replace(block, headless="attention there is not one of all positions at once")
        else:
            block = _with_attention(block, given, attentions[0])
        found.append(with_ports(block, given))
    return _with_like_heads(found)


def _with_like_heads(blocks: list[Block]) -> list[Block]:
    """The same blocks without the attention of those that have other numbers of heads."""
    some = [(i, block) for i, block in enumerate(blocks) if block.heads]
    if not some:
        return blocks
    first, like = some[0]
    other = f"its layers have other numbers of heads than layer {first}, which has {like.heads}"
    if like.key_heads != like.heads:
        other += f" and {like.key_heads} of keys"
    return [
        block
        if not block.heads or (block.heads, block.key_heads) == (like.heads, like.key_heads)
        else Block(
            block.module,
            block.form,
            headless=other,
            ports=block.ports,
            side_by_side=block.side_by_side,
        )
        for block in blocks
    ]


def _is_usual(attention: Attention, tokens: Tensor) -> bool:
    """Whether queries, keys and values are those of every position of every sequence."""
    tensors = attention.query, attention.key, attention.value
    shapes = {(x.shape[1], x.shape[3]) for x in tensors}
    heads = attention.query.shape[2], attention.key.shape[2], attention.value.shape[2]
    return shapes == {tuple(tokens.shape)} and heads[1] == heads[2] and not heads[0] % heads[1]


def _with_attention(block: Block, given: Given, attention: Attention) -> Block:
    """The same block with its attention, and the output projection if that comes last in it."""
    outs: list[Any] = []
    taken: list[tuple[nn.Module, Tensor, Tensor]] = []

    def ends(module: nn.Module, inputs: Any, out: Any) -> None:
        outs.append(out)

    def within(module: nn.Module, inputs: Any, out: Any) -> None:
        if inputs and torch.is_tensor(inputs[0]) and torch.is_tensor(out):
            taken.append((module, inputs[0].clone(), out.clone()))

    handles = [
        module.register_forward_hook(ends if module is attention.module else within)
        for module in attention.module.modules()
    ]
    call = Attending(shape=(1, *given.stream.shape[:2]))
    try:
        with current(call):
            given.call(block.module, given.stream.clone())
    finally:
        for handle in handles:
            handle.remove()
    if len(outs) != 1 or call.output is None:
        return replace(block, headless="its attention module runs more than once in a block")
    form = Form.of(outs[0])
    alone = not form.items or all(x is None for x in outs[0][1:])
    heads, gives = side_by_side(call.output)[0], form.first(outs[0])
    projection = next(
        (
            module
            for module, before, after in taken
            if alone
            and before.numel() == heads.numel()
            and after.shape == gives.shape
            and torch.equal(before.reshape(heads.shape), heads)
            and torch.equal(after, gives)
        ),
        None,
    )
    dims = {kind: int(getattr(attention, kind).shape[-1]) for kind in ("query", "key", "value")}
    return replace(
        block,
        attention=attention.module,
        attends=form,
        projection=projection,
        heads=attention.query.shape[2],
        key_heads=attention.key.shape[2],
        dims={**dims, "output": dims["value"]},
    )


def _size(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
