"""Windowed and top-k attention: against loops in NumPy, and in a decoder by hand."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM

import anamorph as am
from anamorph.auditing.stacks import stacked_edits
from anamorph.models.base import Batch, Context
from anamorph.simplifications import (
    FittedProxy,
    Simplification,
    Simplified,
    check_simplification,
    find_simplification,
)
from anamorph.tasks import Task
from plain import forward, small_model

Window, TopK = find_simplification("window"), find_simplification("topk_attention")


@pytest.mark.parametrize("made", [Window(size=1), Window(size=3), TopK(k=1), TopK(k=3)])
def test_they_keep_every_law(made: Simplification) -> None:
    check_simplification(made)


def window_by_hand(pattern: NDArray[np.floating], size: int) -> NDArray[np.floating]:
    out = np.zeros_like(pattern)
    for query, row in enumerate(pattern):
        near = [key for key in range(len(row)) if abs(query - key) < size]
        for key in near:
            out[query, key] = row[key] / sum(row[near]) * sum(row)
    return out


def top_by_hand(pattern: NDArray[np.floating], k: int) -> NDArray[np.floating]:
    out = np.zeros_like(pattern)
    for query, row in enumerate(pattern):
        kept = sorted(range(len(row)), key=lambda key: (-row[key], key))[:k]
        out[query, kept] = row[kept] / sum(row[kept]) * sum(row)
    return out


def attention(causal: bool) -> tuple[Tensor, Context]:
    """[3, 8, 8] of sequences of 8, 5 and 3 tokens, with many ties."""
    lengths = torch.tensor([8, 5, 3])
    mask = torch.arange(8) < lengths[:, None]
    scores = torch.randint(0, 3, (3, 8, 8), generator=torch.Generator().manual_seed(0)).double()
    hidden = ~mask[:, None] & torch.ones(8, 1, dtype=torch.bool)
    if causal:
        hidden = hidden | torch.ones(8, 8, dtype=torch.bool).triu(1)
    pattern = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    pattern[:, 1] *= 0.75  # as in a model with attention sinks
    return pattern, Context(torch.zeros(3, 8, dtype=torch.long), mask)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("size", [1, 2, 4, 8, 50])
def test_against_loops(causal: bool, size: int) -> None:
    pattern, context = attention(causal)
    for made, by_hand in ((Window(size=size), window_by_hand), (TopK(k=size), top_by_hand)):
        found = made.apply(pattern, context=context)
        for row, length in enumerate((8, 5, 3)):
            expected = by_hand(pattern[row, :length, :length].numpy(), size)
            np.testing.assert_allclose(found[row, :length, :length], expected, atol=1e-12)
            assert not found[row, :length, length:].any()
        assert found.isfinite().all()  # of padding, too
        if size >= 8:
            torch.testing.assert_close(found, pattern)


def test_a_query_without_attention_nearby_attends_to_itself() -> None:
    pattern = torch.zeros(1, 4, 4)
    pattern[:, :, 0] = 1
    at = torch.tensor([[0, 1, 3]])
    found = Window(size=2).apply(pattern[:, [0, 1, 3]], context=Context(at, at >= 0, at))
    assert found[0].tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("made", "by_hand"),
    [(Window(size=3), window_by_hand), (TopK(k=2), top_by_hand)],
    ids=["window", "top-k"],
)
def test_in_a_decoder(made: Simplification, by_hand: object, task: Task) -> None:
    """All heads at once, also in the last layer, which runs at a few positions only."""
    model = small_model(task)
    sites = [site for site in model.sites if site.kind == "pattern"]
    edits = stacked_edits([FittedProxy(Simplified(()), dict.fromkeys(sites, made), 0)])
    random = np.random.default_rng(0)
    rows = [random.integers(0, 5, length) for length in (12, 7)]
    tokens = torch.zeros(2, 12, dtype=torch.long)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.from_numpy(row)
    batch = Batch(tokens, torch.arange(12) < torch.tensor([[12], [7]]))
    at = torch.tensor([[11, 4], [6, 0]])
    with torch.inference_mode():
        found = model.logits(model.run(batch, edits, at=at).state)[0]
    size = 3 if by_hand is window_by_hand else 2
    for number, row in enumerate(rows):
        by_site = {site: lambda x: by_hand(x, size) for site in sites}  # type: ignore[operator]
        expected = forward(model, row, by_site)["logits"][at[number].numpy()]
        np.testing.assert_allclose(found[number], expected, atol=2e-4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("window(size=0)@0.0.pattern", "size must be a whole number, 1 or more; got 0"),
        ("topk_attention(k=1.5)@0.0.pattern", "k must be a whole number"),
    ],
)
def test_what_makes_no_sense(spec: str, message: str) -> None:
    with pytest.raises(am.AnamorphError, match=message):
        am.simplifications.parse(spec)


def test_their_sizes() -> None:
    for spec, name in (("window(size=8)", "size"), ("topk_attention(k=8)", "k")):
        (proxy,) = am.simplifications.parse(f"{spec}@*.*.pattern")
        assert (proxy.size_name, proxy.size) == (name, 8.0)
        assert isinstance(proxy.size, float)


def test_it_is_the_window_that_mistral_has() -> None:
    """A model made with a sliding window equals the same without, and `window` at its patterns."""
    shape = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    configs = [MistralConfig(**shape, **heads, sliding_window=size) for size in (None, 4)]
    torch.manual_seed(0)
    plain, sliding = (
        MistralForCausalLM._from_config(c, attn_implementation="eager").eval() for c in configs
    )
    for parameter in plain.parameters():
        parameter.data.normal_(std=0.5)
    sliding.load_state_dict(plain.state_dict())
    tokens = torch.randint(0, 40, (3, 12))
    model = am.HuggingFace(plain)
    sites = [site for site in model.sites if site.kind == "pattern"]
    edits = stacked_edits([FittedProxy(Simplified(()), dict.fromkeys(sites, Window(size=4)), 0)])
    with torch.inference_mode(), model.session():
        found = model.logits(model.run(Batch.whole(tokens), edits).state)[0]
        without = model.logits(model.run(Batch.whole(tokens)).state)[0]
        expected = sliding(tokens).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(without, expected, atol=1e-2)
