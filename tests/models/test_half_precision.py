"""Models in bfloat16 and float16, as they are shipped: audited as they are, rounding included."""

import pytest
import torch

import anamorph as am
from anamorph.auditing.noise import noise_floor
from anamorph.models.base import Batch
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
        pooled = found.results.filter(facet=None, simplification="identity")
        values = dict(pooled.select("metric", "value").iter_rows())
        assert (values["same_prediction"], values["output_jsd"], values["output_kl"]) == (1, 0, 0)
        floors[dtype] = noise_floor(model, task)["output_jsd"]  # type: ignore[index]
    assert 0 < floors[torch.float32] < 1e-8 < floors[torch.bfloat16] < 1e-2
