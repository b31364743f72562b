import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anamorph.auditing.stacks import StackedEdit
from anamorph.errors import AnamorphError
from anamorph.models.base import Batch, LayerKind
from anamorph.models.checks import check_model
from anamorph.models.huggingface.model import HuggingFace
from anamorph.models.sites import Site
from anamorph.simplifications import OneHot, Simplification
from huggingface_models import MODELS, MORE, VOCABULARY, make
from running import run

TOKENS = torch.randint(3, VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(1))
LENGTHS = (11, 7, 4)

# --- the model's own logits ---------------------------------------------------------------------


def padded(side: str) -> Batch:
    mask = torch.zeros_like(TOKENS).bool()
    for row, length in enumerate(LENGTHS):
        mask[row, slice(length) if side == "right" else slice(-length, None)] = True
    tokens = torch.full_like(TOKENS, 5)
    tokens[mask] = torch.cat([TOKENS[row, :length] for row, length in enumerate(LENGTHS)])
    return Batch(tokens, mask)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_hugging_faces_own(name: str, attention: str) -> None:
    model = make(name, attention)
    with torch.inference_mode():
        alone = [
            model(input_ids=t[None, :n]).logits[0] for t, n in zip(TOKENS, LENGTHS, strict=True)
        ]
    audited = HuggingFace(model)
    for side in ("left", "right"):
        batch = padded(side)
        logits = run(audited, batch)[0]
        for row, expected in enumerate(alone):
            torch.testing.assert_close(logits[row, batch.mask[row]], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [*MODELS, *MORE])
def test_keeps_every_law(name: str) -> None:
    check_model(HuggingFace(make(name)), TOKENS)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "bert"])
def test_leaves_the_model_as_it_was(name: str) -> None:
    model = make(name).train()
    model.get_input_embeddings().eval()  # type: ignore[operator]

    def look() -> list[Any]:
        return [
            (
                module.training,
                sorted(module.__dict__),
                list(module._forward_hooks.values()),
                getattr(getattr(module, "config", None), "_attn_implementation", None),
                {name: p.dtype for name, p in module.named_parameters(recurse=False)},
            )
            for module in model.modules()
        ]

    before, weights = look(), copy.deepcopy(model.state_dict())
    audited = HuggingFace(model)
    edit = StackedEdit(LayerKind(0, "query"), [{0: _Half()}])
    run(audited, padded("right"), {LayerKind(0, "query"): edit})
    with pytest.raises(ZeroDivisionError):
        run(audited, padded("right"), {LayerKind(1, "mlp"): lambda x: 1 / 0})
    assert look() == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


# --- proxies by brute force ---------------------------------------------------------------------


class _Half(Simplification):
    name = "half"

    def __call__(self, x: Tensor) -> Tensor:
        return x / 2


def project(x: Tensor, axes: Tensor) -> Tensor:
    return x @ axes @ axes.T


def by_hand(
    name: str, layer: int, head: int, axes: Tensor | None, key_axes: Tensor | None = None
) -> Tensor:
    """Logits with an attention function of our own, one head and one position at a time."""
    import transformers as hf
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    def attention(
        module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, **given: Any
    ) -> Any:
        out = torch.zeros_like(q)
        scaling = given.get("scaling") or q.shape[-1] ** -0.5
        group = q.shape[1] // k.shape[1]
        for b in range(q.shape[0]):
            for h in range(q.shape[1]):
                for i in range(q.shape[2]):
                    query, keys = q[b, h, i], k[b, h // group]
                    if module.layer_idx == layer and h == head and axes is not None:
                        query = project(query, axes)
                    shared = key_axes is not None and h // group == head // group
                    if module.layer_idx == layer and shared:
                        keys = project(keys, key_axes)
                    scores = keys @ query * scaling
                    if given.get("softcap"):
                        scores = torch.tanh(scores / given["softcap"]) * given["softcap"]
                    if mask is not None:
                        scores = scores + mask[min(b, len(mask) - 1), 0, i]
                    weights = torch.exp(scores - scores.max())
                    weights = weights / weights.sum()
                    if module.layer_idx == layer and h == head and axes is None:
                        weights = (torch.arange(len(weights)) == weights.argmax()).float()
                    out[b, h, i] = weights @ v[b, h // group]
        return out.transpose(1, 2).contiguous(), None

    hf.AttentionInterface.register("by_hand", attention)
    AttentionMaskInterface.register("by_hand", eager_mask)
    model = make(name)
    for module in model.modules():
        if hasattr(getattr(module, "config", None), "_attn_implementation_internal"):
            module.config._attn_implementation_internal = "by_hand"
    with torch.inference_mode():
        return model(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits


@pytest.mark.parametrize("name", MODELS)
def test_a_rank_r_proxy_of_one_head_is_the_brute_force_one(name: str) -> None:
    model = HuggingFace(make(name))
    head, layer = 3, 1
    axes, key_axes = (
        torch.linalg.qr(torch.randn(8, 3, generator=torch.Generator().manual_seed(s)))[0]
        for s in (0, 1)
    )
    edits = {
        LayerKind(layer, kind): StackedEdit(
            LayerKind(layer, kind), [{at: _Projection(x)}, {at: _Projection(torch.eye(8))}]
        )
        for kind, x, at in (
            ("query", axes, head),
            ("key", key_axes, model.layout[0].reads(head)),
        )
    }
    logits = run(model, Batch.whole(TOKENS), edits)
    expected = by_hand(name, layer, head, axes, key_axes)
    torch.testing.assert_close(logits[0], expected, atol=2e-5, rtol=1e-4)
    usual = run(model, Batch.whole(TOKENS))
    torch.testing.assert_close(logits[1], usual[0], atol=2e-5, rtol=1e-4)  # full rank
    assert (logits[0] - usual[0]).abs().max() > 0.01


@pytest.mark.parametrize("name", MODELS)
def test_a_one_hot_proxy_of_one_head_is_the_brute_force_one(name: str) -> None:
    model = HuggingFace(make(name))
    pattern: dict[Site, Tensor | None] = {Site(1, 2, "pattern"): None, Site(1, 0, "pattern"): None}
    key = LayerKind(1, "pattern")
    edits = {key: StackedEdit(key, [{2: OneHot()}])}
    logits = run(model, Batch.whole(TOKENS), edits, pattern)
    torch.testing.assert_close(logits[0], by_hand(name, 1, 2, None), atol=2e-5, rtol=1e-4)
    edited, other = pattern.values()
    assert edited is not None and other is not None
    assert edited.shape == other.shape == (1, 3, 11, 11)
    assert ((edited == 0) | (edited == 1)).all() and not ((other == 0) | (other == 1)).all()
    torch.testing.assert_close(other.sum(-1), torch.ones(1, 3, 11))


class _Projection(Simplification):
    name = "axes"

    def __init__(self, axes: Tensor) -> None:
        self.axes = axes

    def affine(self) -> tuple[Tensor, Tensor]:
        return self.axes @ self.axes.T, torch.zeros(len(self.axes))

    def __call__(self, x: Tensor) -> Tensor:
        return project(x, self.axes)


# --- what is there, and what is not ---------------------------------------------------------------


def test_sites_count_keys_by_their_own_heads() -> None:
    sites = HuggingFace(make("llama")).sites
    assert [s.head for s in sites if (s.layer, s.kind) == (2, "query")] == [0, 1, 2, 3]
    assert [s.head for s in sites if (s.layer, s.kind) == (2, "key")] == [0, 1]
    assert Site(1, None, "mlp") in sites and Site(2, None, "residual") in sites


def test_a_model_outside_the_interface_offers_what_hooks_reach() -> None:
    kinds = {site.kind for site in HuggingFace(make("gpt_neo")).sites}
    streams = {"residual", "mlp", "attention", "middle", "mlp_input"}
    assert kinds == streams | {"norm_1", "norm_2", "norm_final"}


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(AnamorphError, match=r"no language-model head.*AutoModelForCausalLM"):
        HuggingFace(make("gpt2").transformer)  # type: ignore[arg-type]


def test_a_sequence_beyond_the_context_is_refused() -> None:
    model = HuggingFace(make("llama"))
    tokens = torch.ones(1, 33, dtype=torch.long)
    with pytest.raises(AnamorphError, match=r"33 tokens.*context of 32"):
        model.start(Batch(tokens, tokens.bool()))
