"""The scales of norms, against hooks on the plain module and formulas of its classes."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import anamorph as am
from anamorph.errors import AnamorphError
from anamorph.models.base import Batch, EditBy, LayerKind
from anamorph.models.listing import missing_sites
from anamorph.models.sites import NORM_KINDS, match_sites
from huggingface_models import GROUPED, SIZES, VOCABULARY, make, uneven, wide

TOKENS = torch.randint(3, VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(1))
LLAMA = "model.layers", ("input_layernorm", "post_attention_layernorm"), "model.norm"
SANDWICH = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
NORMS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "gpt2": ("transformer.h", ("ln_1", "ln_2"), "transformer.ln_f"),
    "llama": LLAMA,
    "qwen3": LLAMA,
    "gemma3": ("model.layers", SANDWICH, "model.norm"),
    "neox": ("gpt_neox.layers", LLAMA[1], "gpt_neox.final_layer_norm"),
    "opt": (
        "model.decoder.layers",
        ("self_attn_layer_norm", "final_layer_norm"),
        "model.decoder.final_layer_norm",
    ),
    "bert": ("bert.encoder.layer", ("attention.output.LayerNorm", "output.LayerNorm"), ""),
    "cohere": ("model.layers", ("input_layernorm",), "model.norm"),
    "olmo": LLAMA,  # its epsilon is not kept anywhere
    "olmo2": (
        "model.layers",
        ("post_attention_layernorm", "post_feedforward_layernorm"),
        "model.norm",
    ),
}
"""Where somebody who knows the class finds its norms: in a block, in their order, and behind."""

OTHERS: dict[str, Callable[[], nn.Module]] = {
    "cohere": lambda: hf.CohereForCausalLM(hf.CohereConfig(**SIZES)),
    "olmo": lambda: hf.OlmoForCausalLM(hf.OlmoConfig(**SIZES)),
    "olmo2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**SIZES)),
}
CENTRED = "gpt2", "neox", "opt", "bert", "cohere", "olmo"


def varied(name: str) -> Any:
    """A model whose norms have gains and biases of their own."""
    return uneven(wide(OTHERS[name]()) if name in OTHERS else make(name))


def norms_of(module: Any, name: str) -> dict[LayerKind, Any]:
    blocks, within, behind = NORMS[name]
    found = {
        LayerKind(layer, f"norm_{number}"): module.get_submodule(f"{blocks}.{layer}.{path}")
        for layer in range(3)
        for number, path in enumerate(within, start=1)
    }
    if behind:
        found[LayerKind(2, "norm_final")] = module.get_submodule(behind)
    return found


def own(module: Any) -> Tensor:
    with torch.inference_mode():
        return module(input_ids=TOKENS).logits  # type: ignore[no-any-return]


def logits(model: am.HuggingFace, edits: Any) -> Tensor:
    with torch.inference_mode():
        return model.logits(model.run(Batch.whole(TOKENS), edits).state)[0]


def halved(norm: Any, inputs: Any, out: Tensor) -> Tensor:
    """A hook: half of the scale is half of what a norm gives beside its bias.

    At the first positions alone: a norm behind may make up for half of all.
    """
    bias = dict(norm.named_parameters()).get("bias", torch.tensor(0.0))
    new = out.view(*TOKENS.shape, -1).clone()
    new[:, :4] = (new[:, :4] - bias) / 2 + bias
    return new.view(out.shape)


def half(scale: Tensor) -> Tensor:
    """An edit that does the same."""
    return torch.cat([scale[:, :, :4] / 2, scale[:, :, 4:]], dim=2)


@pytest.mark.parametrize("name", NORMS)
def test_every_norm_is_found_and_halved_as_by_a_hook(name: str) -> None:
    module = varied(name)
    model, norms = am.HuggingFace(module), norms_of(module, name)
    found = {LayerKind(s.layer, s.kind) for s in model.sites if s.kind in NORM_KINDS}
    assert found == set(norms)
    recorded = model.run(Batch.whole(TOKENS), record=norms).recorded
    for key, norm in norms.items():
        taken: list[Tensor] = []
        with ExitStack() as hooks:
            look = norm.register_forward_pre_hook(lambda _, x, taken=taken: taken.append(x[0]))
            hooks.callback(look.remove)
            hooks.callback(norm.register_forward_hook(halved).remove)
            expected = own(module)
        (x,) = taken
        x = x.view(*TOKENS.shape, -1)
        x = x - x.mean(-1, keepdim=True) if name in CENTRED else x
        eps = next((vars(norm)[e] for e in ("eps", "variance_epsilon") if e in vars(norm)), 1e-5)
        scale = 1 / (x.double().pow(2).mean(-1, keepdim=True) + eps).sqrt()
        torch.testing.assert_close(recorded[key][0], scale.float(), atol=1e-5, rtol=1e-5)
        edited = logits(model, {key: EditBy(half)})
        torch.testing.assert_close(edited, expected, atol=1e-4, rtol=1e-4)
        assert (edited - own(module)).abs().max() > 0.01


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "neox"])
def test_without_an_edit_and_with_its_own_scale_it_is_the_same_to_the_bit(name: str) -> None:
    module = varied(name)
    model, bare = am.HuggingFace(module), am.HuggingFace(module)
    bare.blocks = [replace(block, norms={}) for block in bare.blocks]
    edits = {key: EditBy(torch.clone) for key in norms_of(module, name)}
    plain = logits(bare, {})
    assert torch.equal(logits(model, {}), plain)
    assert torch.equal(logits(model, edits), plain)
    assert {edit.fired for edit in edits.values()} == {1}


def test_heads_attend_again_behind_a_norm_that_is_edited() -> None:
    """In the first layer that is edited, heads otherwise take over what the model computed."""
    module = varied("llama")
    model, (norm, value) = am.HuggingFace(module), (LayerKind(1, "norm_1"), LayerKind(1, "value"))
    block = module.model.layers[1]
    with ExitStack() as hooks:
        hooks.callback(block.input_layernorm.register_forward_hook(halved).remove)
        double = block.self_attn.v_proj.register_forward_hook(lambda _, __, out: out * 2)
        hooks.callback(double.remove)
        expected = own(module)
    edits = {norm: EditBy(half), value: EditBy(lambda x: x * 2)}
    torch.testing.assert_close(logits(model, edits), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_scale_is_at_least_single_precision(dtype: torch.dtype) -> None:
    module = varied("llama").to(dtype)
    norm = am.HuggingFace(module).blocks[1].norms["norm_2"]
    assert (norm.eps, norm.centred) == (1e-6, False)
    x = torch.full((1, 2, 32), 3.0, dtype=dtype)
    scale = norm.scale(x)
    assert scale.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(scale, torch.full_like(scale, (9 + 1e-6) ** -0.5))
    out = norm.module(x)
    assert norm.scaled(x, out, scale).dtype == dtype
    torch.testing.assert_close(norm.scaled(x, out, scale * 2), out * 2)


# --- what is refused ------------------------------------------------------------------------------


class Hidden(nn.Module):
    """A norm whose epsilon nothing tells."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, x.shape[-1:], eps=1e-4)


class Largest(nn.Module):
    """A norm by the largest number, so that its scale is another."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.abs().amax(-1, keepdim=True) + self.eps)


@pytest.mark.parametrize("kind", [Hidden, Largest])
@pytest.mark.parametrize("behind", [False, True])
def test_norms_of_which_one_is_not_known_are_none(kind: type[nn.Module], behind: bool) -> None:
    module = varied("llama")
    if behind:
        module.model.norm = kind()
    else:
        module.model.layers[1].input_layernorm = kind()
    model = am.HuggingFace(module)
    assert not {site.kind for site in model.sites} & set(NORM_KINDS)
    (said, _) = missing_sites(model)
    assert said.startswith("No norm in layers 0-2 of LlamaForCausalLM: ")
    assert said.endswith("known, or several norms." if behind else "theirs is none that is known.")
    with pytest.raises(AnamorphError, match=r"no site '\*\.norm'"):
        match_sites("*.norm", model.sites)


def test_a_norm_that_runs_twice_is_refused() -> None:
    module = wide(hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)))

    class Twice(type(module.model.layers[1])):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor, **more: Any) -> Any:
            given = self.input_layernorm(hidden_states)
            hidden_states = hidden_states + self.self_attn(hidden_states=given, **more)[0]
            return hidden_states + self.mlp(self.input_layernorm(hidden_states))

    for layer in module.model.layers:
        layer.__class__ = Twice
    model = am.HuggingFace(module)
    assert not {site.kind for site in model.sites} & set(NORM_KINDS)
    assert any("runs more than once" in sentence for sentence in missing_sites(model))
