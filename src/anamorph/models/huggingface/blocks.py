"""Where the parts of a Hugging Face model's blocks are, found by running it."""

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from anamorph.errors import AnamorphError
from anamorph.models.huggingface.again import side_by_side
from anamorph.models.huggingface.attention import Attention
from anamorph.models.huggingface.calls import (
    Attending,
    Block,
    Call,
    Form,
    Given,
    Heads,
    Probing,
    current,
)
from anamorph.models.huggingface.norms import with_norms
from anamorph.models.huggingface.parts import with_ports
from anamorph.models.huggingface.reference import inputs_of, own_logits
from anamorph.models.huggingface.watch import Seen, Watch, same

OUTSIDE = "what mixes positions there does not go through transformers' AttentionInterface"


class CannotSplit(Exception):
    """A model does not run block by block; says why, as the end of a sentence."""


def blocks_of(model: nn.Module, tokens: Tensor) -> list[Block]:
    """The blocks of a model, about which nothing else is known yet.

    Raises:
        AnamorphError: if it has no list of as many as its configuration says.
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
        ran: set[nn.Module] = set()
        with ExitStack() as hooks:
            for module in {module for modules in lists for module in modules}:
                handle = module.register_forward_hook(lambda module, inputs, out: ran.add(module))
                hooks.callback(handle.remove)
            own_logits(model, tokens)
        lists = [x for x in lists if all(module in ran for module in x)] or lists
    sizes = [sum(parameter.numel() for parameter in modules.parameters()) for modules in lists]
    return [Block(module) for module in lists[sizes.index(max(sizes))]]


def probe(model: nn.Module, blocks: list[Block], call: Probing, tokens: Tensor) -> list[Block]:
    """The blocks of an exchanged model with what is known once it has run, in a new call.

    Raises:
        CannotSplit: if the blocks do not follow each other, once each.
    """
    call.shape = (1, *tokens.shape)
    with current(call):
        model(**inputs_of(model, tokens))
    if [module for module, *_ in call.blocks] != [block.module for block in blocks]:
        raise CannotSplit("its blocks do not run one after the other, once each")
    found = []
    for block, (_, given, out) in zip(blocks, call.blocks, strict=True):
        stream, form = given.stream, Form.of(out)
        if stream.shape[:2] != tokens.shape or form.first(out).shape != stream.shape:
            raise CannotSplit(
                f"its blocks take {list(stream.shape)} and give {list(form.first(out).shape)} for "
                f"tokens {list(tokens.shape)}; expected [batch, position, width]"
            )
        block, attending = replace(block, form=form), Attending()
        watch = Watch.of(block.module, stream, partial(_alone, attending, block, given))
        block = _with_heads(block, watch, attending.seen, tokens)
        found.append(with_norms(with_ports(block, given, watch), watch))
    return _with_like_heads(found)


def _alone(call: Call, block: Block, given: Given) -> Tensor:
    """[batch, position, width] what a block gives of what it was given."""
    return call.run(block, given, given.stream.clone()[None])[0]


def _with_like_heads(blocks: list[Block]) -> list[Block]:
    """The same blocks without the attention of those that have other numbers of heads."""
    layouts = {i: block.heads.layout for i, block in enumerate(blocks) if block.heads}
    if not layouts:
        return blocks
    first, like = next(iter(layouts.items()))
    other = f"its layers have other numbers of heads than layer {first}, which has {like.heads}"
    if like.key_heads != like.heads:
        other += f" and {like.key_heads} of keys"
    return [
        block if layouts.get(i, like) == like else replace(block, heads=None, headless=other)
        for i, block in enumerate(blocks)
    ]


def _is_usual(attention: Attention, tokens: Tensor) -> bool:
    """Whether queries, keys and values are those of every position of every sequence."""
    tensors = attention.query, attention.key, attention.value
    shapes = {(x.shape[1], x.shape[3]) for x in tensors}
    heads = attention.query.shape[2], attention.key.shape[2], attention.value.shape[2]
    return shapes == {tuple(tokens.shape)} and heads[1] == heads[2] and not heads[0] % heads[1]


def _with_heads(
    block: Block, watch: Watch, seen: list[tuple[Attention, Tensor]], tokens: Tensor
) -> Block:
    """A block that was watched, with its heads, if what was seen to attend are such."""
    if not seen:
        return replace(block, headless=OUTSIDE)
    attention, output = seen[0]
    if len(seen) > 1 or not _is_usual(attention, tokens):
        return replace(block, headless="attention there is not one of all positions at once")
    dims = {kind: int(getattr(attention, kind).shape[-1]) for kind in ("query", "key", "value")}
    dims["output"] = dims["value"]
    if attention.module is block.module:  # which has no attention module within
        own = Heads(block.module, block.form, None, attention.layout, dims)
        return replace(block, heads=own)
    ran = next((seen for seen in watch.modules if seen.module is attention.module), None)
    if ran is None:
        return replace(block, headless="its attention module is not called as a module is")
    if ran.times > 1:
        return replace(block, headless="its attention module runs more than once in a block")
    form, heads = Form.of(ran.gave), side_by_side(output)[0]
    inside = set(attention.module.modules()) - {attention.module}
    ends = [s.module for s in watch.modules if s.module in inside and _ends(s, heads, ran)]
    alone = not form.items or all(x is None for x in ran.gave[1:])
    found = Heads(
        module=attention.module,
        form=form,
        projection=ends[0] if ends and alone else None,
        layout=attention.layout,
        dims=dims,
    )
    return replace(block, heads=found)


def _ends(seen: Seen, heads: Tensor, attention: Seen) -> bool:
    """Whether a submodule makes of what heads give, [batch, position, in], what attention gives."""
    given, gave, whole = seen.arguments[0], seen.gave, attention.gave
    return (
        bool(given)
        and all(map(torch.is_tensor, (given[0], gave)))
        and given[0].numel() == heads.numel()
        and torch.equal(given[0].reshape(heads.shape), heads)
        and gave.shape == Form.of(whole).first(whole).shape
        and same(seen.out, attention.out)
    )
