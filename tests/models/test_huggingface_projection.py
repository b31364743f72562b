"""Editing heads where the output projection is more than a matrix, or not what attention ends with.

The independent source is the model itself, run by transformers, with a hook on what the projection
takes: half of one head there is half of the site `output`.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import anamorph as am
import running
from anamorph.models.base import Batch, Context, Edit, LayerKind
from anamorph.models.huggingface.again import linear_matrix
from huggingface_models import VOCABULARY, make

TOKENS = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
LAYER, HEAD, DIM = 1, 2, 8
BATCH = Batch.whole(TOKENS)


class LowRank(nn.Module):
    """A matrix with an adapter, as peft has them: its weight is that of the matrix alone."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.base = base
        self.a = nn.Parameter(torch.randn(4, base.in_features, generator=generator) * 0.3)
        self.b = nn.Parameter(torch.randn(base.out_features, 4, generator=generator) * 0.3)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a.T @ self.b.T  # type: ignore[no-any-return]


class Packed(nn.Module):
    """Whole numbers with a scale, and no weight."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.scale = base.weight.abs().max().item() / 127
        self.register_buffer("packed", (base.weight / self.scale).round().to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.packed.to(x) * self.scale).T  # type: ignore[operator]


class Rounding(nn.Linear):
    """Rounds what it takes, too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x * 8).round() / 8)


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0.5


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def adapter(attention: Any) -> None:
    attention.o_proj = LowRank(attention.o_proj)


def packed(attention: Any) -> None:
    attention.o_proj = Packed(attention.o_proj)


def rounding(attention: Any) -> None:
    attention.o_proj.__class__ = Rounding


def scaled(attention: Any) -> None:
    attention.o_proj.__class__ = Scaled


def hook(attention: Any) -> None:
    attention.o_proj.register_forward_hook(lambda module, inputs, out: out.tanh())


def hook_at_the_first_positions(attention: Any) -> None:
    attention.o_proj.register_forward_hook(
        lambda module, inputs, out: out * (torch.arange(out.shape[1])[:, None] < 4)
    )


def hook_that_silences_one(attention: Any) -> None:
    def silence(module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        out = out.clone()
        out[:, 0] = 0
        return out

    attention.o_proj.register_forward_hook(silence)


def hook_for_large_values(attention: Any) -> None:
    attention.o_proj.register_forward_hook(lambda module, inputs, out: out.clamp(-2, 2))


def hook_before(attention: Any) -> None:
    attention.o_proj.register_forward_pre_hook(lambda module, inputs: inputs[0].clamp(-0.2, 0.2))


def hook_on_attention(attention: Any) -> None:
    attention.register_forward_hook(lambda module, inputs, out: (out[0] * 0.3, *out[1:]))


def parametrized(attention: Any) -> None:
    parametrize.register_parametrization(attention.o_proj, "weight", Twice())


def patched(attention: Any) -> None:
    forward = attention.o_proj.forward
    attention.o_proj.forward = lambda x: forward(x).relu()


CHANGES: dict[str, Callable[[Any], None]] = {
    f.__name__: f
    for f in (
        adapter,
        packed,
        rounding,
        scaled,
        hook,
        hook_at_the_first_positions,
        hook_that_silences_one,
        hook_for_large_values,
        hook_before,
        hook_on_attention,
        parametrized,
        patched,
    )
}


def halved(x: Tensor) -> Tensor:
    """Half of one head of [copy, batch, head, position, dim]."""
    x = x.clone()
    x[:, :, HEAD] /= 2
    return x


class Half(Edit):
    """The same for itself and for other copies, which leave the head as it is."""

    heads = (HEAD,)

    def __init__(self, copies: int) -> None:
        self.copies = copies

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        return self.of_heads(x, range(x.shape[2]), context)

    def of_heads(self, x: Tensor, heads: Any, context: Context) -> Tensor:
        out = x[:, :, list(heads)].expand(self.copies, -1, -1, -1, -1).clone()
        out[0, :, list(heads).index(HEAD)] /= 2
        return out


def expected(model: Any) -> Tensor:
    """Logits with half of what the projection takes of one head."""
    columns = torch.arange(4 * DIM) // DIM == HEAD

    def half(module: nn.Module, inputs: Any) -> Any:
        return torch.where(columns, inputs[0] / 2, inputs[0])

    projection = model.model.layers[LAYER].self_attn.o_proj
    handle = projection.register_forward_pre_hook(half, prepend=True)
    with torch.inference_mode():
        logits: Tensor = model(input_ids=TOKENS).logits
    handle.remove()
    return logits


def run(model: am.HuggingFace, edits: Any) -> Tensor:
    return running.run(model, BATCH, edits)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_half_of_a_head_through_what_the_projection_really_is(change: str, late: bool) -> None:
    model: Any = make("llama")
    if late:  # the model changes when it is known already
        audited = am.HuggingFace(model)
    for layer in model.model.layers:
        CHANGES[change](layer.self_attn)
    if not late:
        audited = am.HuggingFace(model)
    elif change in ("adapter", "packed"):
        pytest.skip("what is known is another module")
    by_hand = expected(model)
    for edit in (halved, Half(1), Half(3)):
        logits = run(audited, {LayerKind(LAYER, "output"): edit})
        torch.testing.assert_close(logits[0], by_hand, atol=2e-5, rtol=1e-4)
    with torch.inference_mode():
        own = model(input_ids=TOKENS).logits
    torch.testing.assert_close(logits[1], own, atol=2e-5, rtol=1e-4)
    assert (own - by_hand).abs().max() > 1e-3


def test_a_plain_projection_is_a_matrix() -> None:
    """The shortcut is there where it is right, with a bias and for matrices of either side."""
    heads = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    linear = nn.Linear(12, 7)
    found = linear_matrix(linear, heads, linear(heads))
    assert found is not None and torch.equal(found, linear.weight.T)
    for name, attention in (("llama", "self_attn.o_proj"), ("gpt2", "attn.c_proj")):
        block = am.HuggingFace(make(name)).blocks[0]
        assert block.projection is block.module.get_submodule(attention)
        width = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
        assert linear_matrix(block.projection, width, block.projection(width)) is not None
    linear.register_forward_hook(lambda module, inputs, out: out * 0.5)
    assert linear_matrix(linear, heads, linear(heads)) is None


@pytest.mark.parametrize("block", [0, -1])
def test_a_hook_on_an_outer_block_is_never_a_wrong_number(block: int) -> None:
    """Steering, put on after the model was wrapped, where it would run twice."""
    model: Any = make("llama")
    audited = am.HuggingFace(model)
    audited.check(BATCH)

    def steer(module: nn.Module, inputs: Any, out: Any) -> Any:
        return (out[0] + 1, *out[1:]) if isinstance(out, tuple) else out + 1

    def steer_input(module: nn.Module, inputs: Any) -> Any:
        return (inputs[0] + torch.linspace(-2, 2, 32), *inputs[1:])

    layer = model.model.layers[block]
    handle = (
        layer.register_forward_pre_hook(steer_input)
        if block == 0
        else layer.register_forward_hook(steer)
    )
    with torch.inference_mode():
        own = model(input_ids=TOKENS).logits
    if not torch.allclose(run(audited, {})[0], own, atol=1e-4):
        with pytest.raises(am.AnamorphError, match="As it is audited, Llama"):
            audited.check(BATCH)
    handle.remove()
    audited.check(BATCH)


@pytest.mark.parametrize("where", ["model.norm", "lm_head", ""])
def test_a_hook_on_late_positions_behind_the_last_block_is_refused(where: str) -> None:
    """Too late for the few tokens of the first trial, which are fewer than the data's."""
    model: Any = make("llama")

    def late(module: nn.Module, inputs: Any, out: Any) -> Any:
        x = out if torch.is_tensor(out) else out.logits
        if x.shape[1] > 12:
            x[:, 12:] *= 0.5
        return out

    model.get_submodule(where).register_forward_hook(late)
    audited = am.HuggingFace(model)
    tokens = torch.arange(3, 33).view(2, 15)
    audited.check(Batch(tokens[:, :12], torch.ones(2, 12).bool()))
    with pytest.raises(am.AnamorphError, match=r"other logits of tokens \[1, 15\]"):
        audited.check(Batch(tokens, torch.ones(2, 15).bool()))


def test_layers_exchanged_after_wrapping_are_refused() -> None:
    model: Any = make("llama")
    audited = am.HuggingFace(model)
    model.model.layers = nn.ModuleList(list(model.model.layers)[::-1])
    with pytest.raises(am.AnamorphError, match="wrap it again"):
        audited.check(BATCH)
    model.model.layers = nn.ModuleList(list(model.model.layers)[:2])
    with pytest.raises(am.AnamorphError, match="wrap it again"):
        audited.check(BATCH)
