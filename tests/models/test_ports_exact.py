"""Recording a site changes no bit, even in half precision or behind a scale."""

import pytest
import torch

from anamorph.models.base import Batch, EditBy, LayerKind
from anamorph.models.huggingface.model import HuggingFace

transformers = pytest.importorskip("transformers")


def granite() -> HuggingFace:
    torch.manual_seed(0)
    config = transformers.GraniteConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        residual_multiplier=0.22,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    module = transformers.GraniteForCausalLM(config)
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(4 if weight.dim() > 1 else 1)
    return HuggingFace(module.to(torch.bfloat16).eval())


@torch.inference_mode()
def test_what_is_recorded_is_what_runs_without_recording() -> None:
    model = granite()
    batch = Batch(torch.arange(14).view(2, 7) + 3, torch.ones(2, 7, dtype=torch.bool))
    with model.session():
        usual = model.logits(model.run(batch).state)
        for kind in ("attention", "middle", "mlp", "mlp_input"):
            key = LayerKind(1, kind)
            assert any((site.layer, site.kind) == key for site in model.sites), kind
            recorded = model.run(batch, record=[key])
            assert torch.equal(model.logits(recorded.state), usual), kind


@torch.inference_mode()
def test_edits_may_make_different_numbers_of_copies() -> None:
    model = granite()
    batch = Batch(torch.arange(14).view(2, 7) + 3, torch.ones(2, 7, dtype=torch.bool))
    half = EditBy(lambda x: x / 2)
    two = EditBy(
        lambda x: (
            torch.cat([x / 2, 2 * x])
            if len(x) == 1
            else x * x.new_tensor([0.5, 2]).view(2, 1, 1, 1)
        ),
        copies=2,
    )
    with model.session():
        both = model.run(batch, {LayerKind(1, "query"): half, LayerKind(1, "mlp"): two})
        for copy, factor in enumerate((0.5, 2.0)):
            edit = EditBy(lambda x, factor=factor: factor * x)
            one = model.run(batch, {LayerKind(1, "query"): half, LayerKind(1, "mlp"): edit})
            assert torch.equal(both.state.residual[copy], one.state.residual[0])
