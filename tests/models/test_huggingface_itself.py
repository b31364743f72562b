"""Whatever model is accepted, it gives what transformers alone gives; hybrids and odd ones too."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import anamorph as am
import running
from anamorph.models.base import Batch, Context, Edit, EditBy, LayerKind, State
from anamorph.models.checks import check_model
from anamorph.models.listing import missing_sites
from anamorph.models.sites import NORM_KINDS
from huggingface_models import GROUPED, MODELS, MORE, SIZES, VOCABULARY, make, wide

TOKENS = torch.randint(3, VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(1))
LENGTHS = 12, 7, 4
OLD = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 32}
SSM = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8}

OUTSIDE: dict[str, Callable[[], nn.Module]] = {  # attention that no interface hands over
    "bloom": lambda: hf.BloomForCausalLM(
        hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=3, n_head=4)
    ),
    "gptj": lambda: hf.GPTJForCausalLM(hf.GPTJConfig(**OLD, rotary_dim=4)),
    "falcon": lambda: hf.FalconForCausalLM(
        hf.FalconConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3, num_attention_heads=4
        )
    ),
    "codegen": lambda: hf.CodeGenForCausalLM(hf.CodeGenConfig(**OLD, rotary_dim=4)),
    "mpt": lambda: hf.MptForCausalLM(
        hf.MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=3, n_heads=4, max_seq_len=32)
    ),
    "gpt1": lambda: hf.OpenAIGPTLMHeadModel(hf.OpenAIGPTConfig(**OLD)),
    "mamba": lambda: hf.MambaForCausalLM(hf.MambaConfig(**SSM)),
    "rwkv": lambda: hf.RwkvForCausalLM(
        hf.RwkvConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3)
    ),
    "mpnet": lambda: hf.MPNetForMaskedLM(hf.MPNetConfig(**SIZES)),
    "megatron_bert": lambda: hf.MegatronBertForMaskedLM(hf.MegatronBertConfig(**SIZES)),
    "rembert": lambda: hf.RemBertForMaskedLM(hf.RemBertConfig(**SIZES)),
    "deberta": lambda: hf.DebertaV2ForMaskedLM(hf.DebertaV2Config(**SIZES)),
}
THROUGH: dict[str, Callable[[], nn.Module]] = {  # with something that others have not
    "bigcode": lambda: hf.GPTBigCodeForCausalLM(hf.GPTBigCodeConfig(**OLD)),
    "doge": lambda: hf.DogeForCausalLM(hf.DogeConfig(**GROUPED)),  # masks made of the values
    "roberta": lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**SIZES)),
    "granite": lambda: hf.GraniteForCausalLM(  # scales what its blocks add
        hf.GraniteConfig(**GROUPED, residual_multiplier=0.25)
    ),
    "cohere": lambda: hf.CohereForCausalLM(hf.CohereConfig(**GROUPED)),  # MLP beside attention
}
HYBRID: dict[str, Callable[[], nn.Module]] = {  # attention in the middle layer alone
    "lfm2": lambda: hf.Lfm2ForCausalLM(
        hf.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention", "conv"])
    ),
    "nemotron_h": lambda: hf.NemotronHForCausalLM(
        hf.NemotronHConfig(
            **{**GROUPED, "head_dim": 8},
            layers_block_type=["mamba", "attention", "mlp"],
            mamba_num_heads=4,
            mamba_head_dim=8,
            ssm_state_size=8,
            n_groups=1,
        )
    ),
    "qwen3_next": lambda: hf.Qwen3NextForCausalLM(
        hf.Qwen3NextConfig(
            **{**GROUPED, "head_dim": 8},
            layer_types=["linear_attention", "full_attention", "linear_attention"],
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
        )
    ),
    "jamba": lambda: hf.JambaForCausalLM(
        hf.JambaConfig(
            **GROUPED,
            attn_layer_period=3,
            attn_layer_offset=1,
            num_experts=2,
            expert_layer_period=2,
            expert_layer_offset=1,
            mamba_d_state=8,
            mamba_dt_rank=4,
            use_mamba_kernels=False,
        )
    ),
}


def build(name: str) -> nn.Module:
    if name in MODELS | MORE:
        return make(name)
    return wide((OUTSIDE | THROUGH | HYBRID)[name]())


def run(
    model: am.HuggingFace,
    tokens: Tensor,
    mask: Tensor | None = None,
    edits: Any = None,
    record: Any = None,
) -> Tensor:
    mask = torch.ones_like(tokens).bool() if mask is None else mask
    return running.run(model, Batch(tokens, mask), edits, record)


def own(model: Any, tokens: Tensor, **more: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=tokens, **more).logits  # type: ignore[no-any-return]


def close(given: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(given, expected, atol=2e-5, rtol=2e-4)


# --- logits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*OUTSIDE, *THROUGH, *HYBRID])
def test_logits_are_the_models_own(name: str) -> None:
    model = build(name)
    together = own(model, TOKENS)
    alone = [own(model, row[None, :n])[0] for row, n in zip(TOKENS, LENGTHS, strict=True)]
    audited = am.HuggingFace(model)
    close(run(audited, TOKENS)[0], together)
    mask = torch.arange(12) < torch.tensor(LENGTHS)[:, None]
    padded = run(audited, TOKENS.where(mask, 5), mask)[0]
    for row, n in enumerate(LENGTHS):
        close(padded[row, :n], alone[row])
        close(run(audited, TOKENS[row : row + 1, :n])[0, 0], alone[row])
    other = TOKENS.clone()
    other[:, 8:] = TOKENS[:, 8:].flip(1)
    sees = not torch.allclose(own(model, other)[:, :8], together[:, :8], atol=1e-4)
    assert audited.causal != sees


@pytest.mark.parametrize("name", ["bloom", "falcon", "mpnet", "deberta"])
def test_padded_as_transformers_pads(name: str) -> None:
    """The masks are the model's own: not only logits of sequences alone."""
    model = build(name)
    mask = torch.arange(12) < torch.tensor(LENGTHS)[:, None]
    expected = own(model, TOKENS, attention_mask=mask.long())
    close(run(am.HuggingFace(model), TOKENS, mask)[0][mask], expected[mask])


@pytest.mark.parametrize("name", ["bloom", "gpt1", "rwkv", "deberta", "granite", "lfm2"])
def test_keeps_every_law(name: str) -> None:
    check_model(am.HuggingFace(build(name)), TOKENS)


@pytest.mark.parametrize("name", OUTSIDE)
def test_outside_the_interface_a_block_has_what_hooks_reach(name: str) -> None:
    model = am.HuggingFace(build(name))
    reached = {"residual", "mlp", "attention", "middle", "mlp_input"}
    assert {site.kind for site in model.sites} <= reached | set(NORM_KINDS)
    assert "AttentionInterface" in missing_sites(model)[0]


@pytest.mark.parametrize("name", ["gptj", "mpt", "rwkv", "rembert", "mamba"])
def test_half_of_a_block_outside_the_interface(name: str) -> None:
    model = build(name)
    audited = am.HuggingFace(model)
    edited = run(audited, TOKENS, None, {LayerKind(1, "residual"): lambda x: x / 2})
    hook = audited.blocks[1].module.register_forward_hook(half)
    expected = own(model, TOKENS)
    hook.remove()
    close(edited[0], expected)


def half(module: nn.Module, inputs: Any, out: Any) -> Any:
    return type(out)([out[0] / 2, *out[1:]]) if isinstance(out, (tuple, list)) else out / 2


def test_a_context_holds_what_its_positions_hold() -> None:
    model = am.HuggingFace(build("roberta"))  # the first of its 32 positions are for padding
    assert model.context == 31
    tokens = TOKENS.repeat(1, 3)[:, :31]
    close(run(model, tokens)[0], own(model.module, tokens))
    with pytest.raises(am.AnamorphError, match=r"32 tokens.*context of 31"):
        run(model, TOKENS.repeat(1, 3)[:, :32])


# --- other proxies beside it ----------------------------------------------------------------------


class _Three(Edit):
    """Three proxies in one edit."""

    copies = 3

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        return torch.stack([x[0] / 2, x[-1].tanh(), x[-1] * 3])


@pytest.mark.parametrize("name", [*MODELS, *MORE, "bloom", "rwkv", "doge", "granite", "jamba"])
def test_a_proxy_is_the_same_with_others_beside_it(name: str) -> None:
    model = am.HuggingFace(build(name))
    mask = torch.arange(12) < torch.tensor(LENGTHS)[:, None]
    for key in sorted({LayerKind(s.layer, s.kind) for s in model.sites if s.layer == 1}):
        both = run(model, TOKENS, mask, {key: _Three()})
        for copy, edit in enumerate((lambda x: x / 2, torch.tanh, lambda x: x * 3)):
            close(both[copy][mask], run(model, TOKENS, mask, {key: edit})[0][mask])


# --- what an MLP adds -----------------------------------------------------------------------------

ADDED_BY = {
    "bloom": "mlp.dense_4h_to_h",
    "mpt": "ffn.down_proj",
    "gptj": "mlp",
    "falcon": "mlp",
    "gpt1": "mlp",
    "rembert": "output.dense",
    "cohere": "mlp",
    "lfm2": "feed_forward",
    "nemotron_h": "mixer",
    "jamba": "feed_forward",
    "rwkv": "feed_forward",
    "gemma2": "post_feedforward_layernorm",
    "opt": "fc2",
}


@pytest.mark.parametrize("name", ADDED_BY)
def test_mlp_is_what_a_block_adds(name: str) -> None:
    model = build(name)
    audited = am.HuggingFace(model)
    layer = 2
    module = audited.blocks[layer].module.get_submodule(ADDED_BY[name])
    record: dict[LayerKind, Any] = {LayerKind(layer, "mlp"): None}
    edited = run(audited, TOKENS, None, {LayerKind(layer, "mlp"): lambda x: x / 2})
    run(audited, TOKENS, None, None, record)
    seen: list[Tensor] = []
    hook = module.register_forward_hook(lambda m, i, out: seen.append(_first(out).clone()))
    own(model, TOKENS)
    hook.remove()
    recorded = record[LayerKind(layer, "mlp")]
    assert recorded is not None
    close(recorded[0], seen[0].view(recorded[0].shape))
    hook = module.register_forward_hook(half)
    expected = own(model, TOKENS)
    hook.remove()
    close(edited[0], expected)
    assert (expected - own(model, TOKENS)).abs().max() > 0.01


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, (tuple, list)) else out  # type: ignore[no-any-return]


def test_mlp_is_what_a_block_adds_where_it_is_scaled() -> None:
    model = am.HuggingFace(build("granite"))
    state = _before(model, 1)
    key, stream = LayerKind(1, "mlp"), LayerKind(1, "residual")
    with torch.inference_mode():
        recorded = model.layer(1, state, {}, [key, stream]).recorded
        without = model.layer(1, state, {key: EditBy(torch.zeros_like)}).state.residual
    close(without + recorded[key], recorded[stream])


def _before(model: am.HuggingFace, layer: int) -> State:
    with torch.inference_mode():
        return model.run(Batch.whole(TOKENS), stop=layer).state


def test_no_mlp_where_no_submodule_gives_what_is_added() -> None:
    model = am.HuggingFace(build("mamba"))
    assert {site.kind for site in model.sites} - set(NORM_KINDS) == {"residual"}
    assert any("No mlp in layers 0-2" in sentence for sentence in missing_sites(model))


# --- hybrids --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HYBRID)
def test_a_hybrid_has_heads_where_it_attends(name: str) -> None:
    model = am.HuggingFace(build(name))
    assert {site.layer for site in model.sites if site.kind == "query"} == {1}
    assert {site.layer for site in model.sites if site.kind == "residual"} == {0, 1, 2}
    assert "in layers {0,2}" in missing_sites(model)[0]


def test_tokens_that_training_never_saw_tell_nothing_of_a_model() -> None:
    """At both ends of a vocabulary they may stand; here what they give is no number."""
    torch.manual_seed(0)
    config = hf.LlamaConfig(**{**GROUPED, "vocab_size": 1000})
    model = hf.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight[:300] = torch.nan
        model.get_input_embeddings().weight[700:] = torch.nan
    assert am.HuggingFace(model).causal


def test_a_first_token_with_a_huge_stream_hides_no_site() -> None:
    """As in many models, where of some tokens the stream is more than a thousandfold."""
    model = wide(hf.LlamaForCausalLM(hf.LlamaConfig(**{**GROUPED, "vocab_size": 1000})))
    with torch.no_grad():
        model.get_input_embeddings().weight[400:410] *= 1e5
    found = am.HuggingFace(model).sites
    assert {site.layer for site in found if site.kind == "mlp_input"} == {0, 1, 2}
