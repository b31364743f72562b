"""Models in bfloat16 and float16, as they are shipped: audited as they are, rounding included."""

import polars as pl
import pytest
import torch
from torch import nn

import anamorph as am
from anamorph.auditing.noise import noise_floor
from anamorph.models.base import Batch
from anamorph.models.huggingface.unembedding import padded
from anamorph.models.wrapped import same_logits, same_up_to_rounding
from huggingface_models import MODELS, make
from random_tasks import random_task


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_block_by_block_it_rounds_as_by_itself(name: str, dtype: torch.dtype) -> None:
    """To the bit where every operation is the model's own."""
    module = make(name).to(dtype)
    model = am.HuggingFace(module)
    tokens = torch.arange(12).view(2, 6)
    with torch.inference_mode():
        own = module(tokens).logits.float()
        exact = make(name)(tokens).logits  # of the same weights, unrounded
        found = model.logits(model.run(Batch.whole(tokens)).state)[0].float()
    rounding = (own - exact).square().mean().sqrt()
    assert (found - own).square().mean().sqrt() <= rounding / 2
    assert model.describe()["dtype"] == str(dtype).removeprefix("torch.")


def test_an_audit_in_bfloat16_has_a_noise_floor_of_its_own() -> None:
    """The identity is exact in any number format; what rounding does is told."""
    task = random_task(29)
    floors = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = am.HuggingFace(make("llama").to(dtype))
        found = am.audit(model, task, ["svd(rank=2)@1.*.{query,key}"], sequences=10)
        pooled = found.results.filter(pl.col("facet").is_null(), simplification="identity")
        values = dict(pooled.select("metric", "value").iter_rows())
        assert (values["same_prediction"], values["output_jsd"], values["output_kl"]) == (1, 0, 0)
        floors[dtype] = noise_floor(model, task)["output_jsd"]  # type: ignore[index]
    assert 0 <= floors[torch.float32] < 1e-8 < floors[torch.bfloat16] < 1e-2


@pytest.mark.parametrize("bias", [True, False])
def test_an_uneven_vocabulary_is_filled_up(bias: bool) -> None:
    """On a GPU, where products are several times faster so; every logit stays what it was."""
    head = nn.Linear(16, 29, bias=bias).to(torch.bfloat16)
    made = padded(head)
    assert made is not None
    x = torch.randn(3, 5, 16, dtype=torch.bfloat16)
    found = made(x)
    assert found.shape == (3, 5, 29)
    assert found.stride() == (5 * 64, 64, 1)  # a view of rows that are longer
    torch.testing.assert_close(found, head(x), rtol=1e-2, atol=1e-2)
    assert found.view(15, 1, 29).shape == (15, 1, 29)
    for other in (head.float(), nn.Linear(16, 32).to(torch.bfloat16), nn.Identity(), None):
        assert padded(other) is None
    changed = nn.Linear(16, 29).to(torch.bfloat16)
    changed.forward = lambda x: x  # type: ignore[method-assign]
    assert padded(changed) is None


def test_logits_of_many_layers_are_told_apart_all_together() -> None:
    """Rounding moves each a little; what must not be seen, or a broken position, all by much."""
    torch.manual_seed(0)
    exact = torch.randn(6, 400)
    rounded = (exact + 0.035 * torch.randn(6, 400)).bfloat16()  # as twelve layers of bfloat16 do
    assert not same_up_to_rounding(rounded, exact.bfloat16())
    assert same_logits(rounded, exact.bfloat16())
    one_off = rounded.clone()
    one_off[3] = rounded[2]
    assert not same_logits(one_off, exact.bfloat16())
    assert not same_logits(rounded.float(), exact)  # in float32 that is no rounding
    assert not same_logits(rounded[:, :399], exact.bfloat16())
    ruled_out = exact.bfloat16().masked_fill(exact > 2, -torch.inf)
    assert same_logits(rounded.masked_fill(exact > 2, -torch.inf), ruled_out)
    assert not same_logits(rounded.masked_fill(exact > 2.5, -torch.inf), ruled_out)
    assert not same_logits(rounded.masked_fill(exact > 2, torch.nan), ruled_out)


@pytest.mark.parametrize(("name", "causal"), [("gpt2", True), ("qwen2", True), ("bert", False)])
def test_what_sees_the_future_is_told_in_bfloat16(name: str, causal: bool) -> None:
    assert am.HuggingFace(make(name).to(torch.bfloat16)).causal == causal
