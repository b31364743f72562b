"""A model that transformers spread over several devices (`device_map`) runs as it is."""

import copy
from typing import Any

import pytest
import torch
from polars.testing import assert_frame_equal
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import anamorph as am
from huggingface_models import make
from pretended import DEVICE, SECOND, Pretended, on_accelerator
from random_tasks import random_task

SPECS = [
    "svd(rank=2)@1.*.{query,key}",  # on both devices
    "svd(rank=2, joint=true)@0.*.{query,key}",
    "onehot@1.1.pattern",
    "pca(rank=3)@0.mlp",
    "resample@2.mlp",
    "pca(rank=2, keep=1)@1.residual",
    "kmeans(clusters=3)@*.*.value",
    "topk_transcoder(features=8, k=2, batch=32)@2.mlp",
    "quantize(bits=4)@1.mlp",
]


def there(module: nn.Module, device: torch.device) -> None:
    """A part on a device, with what accelerate's hooks do: what it is given is brought there."""
    on_accelerator(module, device=device)
    forward = module.forward

    def moving(*given: Any, **named: Any) -> Any:
        given, named = tree_map_only(Tensor, lambda x: x.to(device), (given, named))
        return forward(*given, **named)

    module.forward = moving  # type: ignore[method-assign]


def spread(module: Any) -> Any:
    """As `device_map` has it: the embedding and a block on one device, the rest on another."""
    body = module.model
    first, *others = body.layers
    for part in (body.embed_tokens, body.rotary_emb, first):
        there(part, DEVICE)
    for part in (*others, body.norm, module.lm_head):
        there(part, SECOND)
    forward = module.forward

    def whole(**named: Any) -> Any:
        out = forward(**named)
        out.logits = out.logits.to(named["input_ids"].device)  # as accelerate gives it back
        return out

    module.forward = whole
    module.hf_device_map = {"model.embed_tokens": 0, "model.layers.0": 0, "": 1}
    return module


@pytest.mark.filterwarnings("ignore:.*learnt in")
def test_it_has_the_numbers_of_one_device() -> None:
    task, module = random_task(20), make("llama")
    options: dict[str, Any] = {"sequences": 10, "fit_sequences": 20}
    usual = am.audit(am.HuggingFace(copy.deepcopy(module)), task, SPECS, **options)
    with Pretended():
        model = am.HuggingFace(spread(module))
        model.parallel = False  # another thread knows nothing of pretended devices
        away = am.audit(model, task, SPECS, **options)
        looked = away.at_sites(model, task)
    assert_frame_equal(away.results, usual.results, rel_tol=0, abs_tol=1e-5)
    assert looked.height == usual.at_sites(am.HuggingFace(make("llama")), task).height


def test_without_what_moves_things_it_is_refused() -> None:
    module = spread(make("llama"))
    del module.hf_device_map
    with Pretended(), pytest.raises(am.AnamorphError, match=r"several devices .*device_map"):
        am.HuggingFace(module)
