"""Attention and norms frozen at what the model itself has."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import anamorph as am
from anamorph.auditing.audit import fit_on_task
from anamorph.auditing.engine import Settings, audit_split
from anamorph.auditing.proxies import SimplifiedProxy
from anamorph.auditing.stacks import stacked_edits
from anamorph.models.base import Batch, EditBy, LayerKind, Model
from anamorph.simplifications import expand, fit
from anamorph.tasks import Task
from huggingface_models import VOCABULARY, make
from plain import small_model

TOKENS = torch.randint(3, VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(1))
ALONE = ("frozen@*.norm", "frozen@*.norm_final", "frozen@*.*.pattern;frozen@*.norm")
NAMES = ("decoder", "gpt2", "llama", "gemma3", "neox")


def model_of(name: str) -> tuple[Model, Any]:
    """A model and its module, whose norms have gains and biases of their own."""
    if name == "decoder":
        torch.manual_seed(0)
        module: Any = am.Decoder(am.DecoderConfig(VOCABULARY, 16, 3, 2, 32, 48)).eval()
    else:
        module = make(name)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module if name == "decoder" else am.HuggingFace(module), module


def run(model: Model, edits: Any) -> tuple[Tensor, Tensor]:
    """[copy, batch, position, width] residual stream behind the last layer, and logits."""
    with torch.inference_mode():
        state = model.run(Batch.whole(TOKENS), edits).state
        return state.residual, model.logits(state)


@pytest.mark.parametrize("spec", ALONE)
@pytest.mark.parametrize("name", NAMES)
def test_with_nothing_else_replaced_it_is_the_model(name: str, spec: str) -> None:
    model, module = model_of(name)
    (proxy,) = fit(model, expand(spec), {"train": [Batch.whole(TOKENS)]}).values()
    with torch.inference_mode():
        own = module(TOKENS)
    found = run(model, stacked_edits([proxy], led=True))[1][-1]
    torch.testing.assert_close(found, own if name == "decoder" else own.logits)


def test_in_an_audit_it_is_the_model(task: Task) -> None:
    model, split = small_model(task, layers=3), task.splits["unseen_depth"].take(np.arange(8))
    fitted = fit_on_task(model, expand(list(ALONE)), task, 5)
    proxies = [SimplifiedProxy(proxy, model) for proxy in fitted.values()]
    for cell in audit_split(model, split, task.candidates, proxies, Settings()).values():
        assert abs(float(cell.sums[cell.metrics.index("output_kl")].sum())) < 1e-5
        agreed = cell.sums[cell.metrics.index("same_prediction")].sum()
        assert float(agreed) == float(cell.index.tokens.sum())


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_all_held_the_rest_is_affine_in_what_features_add(name: str, norms: bool) -> None:
    """As in attribution graphs (Ameisen et al. 2025): every MLP is a decoder's sum of activations.

    So along a line of activations, stream and logits move on a line, and not without the norms.
    """
    model, _ = model_of(name)
    held = {"pattern", "norm_1", "norm_2", "norm_3", "norm_4", "norm_final"}
    keys = {LayerKind(s.layer, s.kind) for s in model.sites if s.kind in held}
    keys = {key for key in keys if norms or key.kind == "pattern"}
    clean = model.run(Batch.whole(TOKENS), record=keys).recorded
    generator = torch.Generator().manual_seed(3)
    decoder = torch.randn(3, 20, 32, generator=generator)
    start, step = torch.randn(2, 3, *TOKENS.shape, 20, generator=generator)

    def at(place: float) -> tuple[Tensor, Tensor]:
        edits = {key: EditBy(lambda x, key=key: clean[key]) for key in keys}  # type: ignore[misc]
        for layer in range(3):
            added = ((start + place * step)[layer] @ decoder[layer])[None]
            edits[LayerKind(layer, "mlp")] = EditBy(lambda x, added=added: added)  # type: ignore[misc]
        return run(model, edits)

    for left, middle, right in zip(at(-1.0), at(0.5), at(2.0), strict=True):
        apart = float((middle - (left + right) / 2).abs().max())
        assert apart < 1e-4 * float(middle.abs().max()) if norms else apart > 0.05
