"""Blocks of Hugging Face models whose attention is not a module that is called."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anamorph.models.base import Batch, EditBy, LayerKind
from anamorph.models.checks import check_model
from anamorph.models.huggingface.model import HuggingFace

transformers = pytest.importorskip("transformers")
modeling = pytest.importorskip("transformers.models.llama.modeling_llama")


def llama() -> Any:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 32}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=61, **size, **heads)
    ).eval()


class AttendsItself(modeling.LlamaDecoderLayer):  # type: ignore[misc, name-defined]
    """Computes what its attention module would, and hands itself to the attention function."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **_: Any,
    ) -> Tensor:
        own, x = self.self_attn, self.input_layernorm(hidden_states)
        shape = (*x.shape[:-1], -1, own.head_dim)
        query, key, value = (
            project(x).view(shape).transpose(1, 2)
            for project in (own.q_proj, own.k_proj, own.v_proj)
        )
        query, key = modeling.apply_rotary_pos_emb(query, key, *position_embeddings)
        attend = modeling.ALL_ATTENTION_FUNCTIONS.get_interface(
            own.config._attn_implementation, modeling.eager_attention_forward
        )
        heads, _ = attend(self, query, key, value, attention_mask, dropout=0.0, scaling=own.scaling)
        stream = hidden_states + own.o_proj(heads.reshape(*x.shape[:-1], -1))
        return stream + self.mlp(self.post_attention_layernorm(stream))


def test_a_block_may_attend_itself() -> None:
    usual, module = HuggingFace(llama()), llama()
    for layer in module.model.layers:
        layer.__class__ = AttendsItself
        layer.config, layer.is_causal, layer.num_key_value_groups = module.config, True, 2
        layer.layer_idx = layer.self_attn.layer_idx
    itself = HuggingFace(module)
    assert itself.sites == usual.sites
    check_model(itself, torch.randint(3, 61, (3, 9), generator=torch.Generator().manual_seed(1)))
    batch = Batch.whole(torch.arange(24).view(2, 12))
    for kind in ("query", "pattern", "output"):
        edits = {LayerKind(1, kind): EditBy(lambda x: x.roll(1, dims=2))}  # of heads
        ours, theirs = (model.logits(model.run(batch, edits).state) for model in (itself, usual))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


class Caller(nn.Module):
    """Calls another module's `forward` without going through `__call__`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *given: Any, **named: Any) -> Any:
        return self.inner.forward(*given, **named)


def test_attention_that_is_not_called_as_a_module_is_told() -> None:
    module = llama()
    for layer in module.model.layers:
        layer.self_attn = Caller(layer.self_attn)
    model = HuggingFace(module)
    assert {block.headless for block in model.blocks} == {
        "its attention module is not called as a module is"
    }
    assert "query" not in {site.kind for site in model.sites}


def test_an_error_of_attention_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from anamorph.models.huggingface.attention import Attention

    def refuse(self: Attention, *_: Any, **__: Any) -> Tensor:
        raise RuntimeError("kernel does not take this")

    monkeypatch.setattr(Attention, "attend", refuse)
    (why,) = {block.headless for block in HuggingFace(llama()).blocks}
    assert why.endswith("it does not run in parts (RuntimeError: kernel does not take this)")
