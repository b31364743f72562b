"""Fingerprints of weights, and of what a model says."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import anamorph as am
from anamorph.models.base import Batch
from anamorph.models.fingerprint import close_logits, fingerprint_of, probe_logits

TOKENS = torch.tensor([[1, 5, 2, 8, 3, 3], [4, 2, 7, 0, 0, 0]])
BATCH = Batch(TOKENS, torch.tensor([[True] * 6, [True] * 3 + [False] * 3]))


def module() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(3))
    return nn.ModuleDict({"embed": nn.Embedding(7, 4), "layers": layers})


def parts_that_differ(a: nn.Module, b: nn.Module) -> list[str]:
    one, other = fingerprint_of(a), fingerprint_of(b)
    assert one.keys() == other.keys()
    return [part for part in one if one[part] != other[part]]


def test_every_layer_has_a_digest() -> None:
    found = fingerprint_of(module())
    assert list(found) == ["layer 0", "layer 1", "layer 2", "the rest"]
    assert found == fingerprint_of(module()) == fingerprint_of(copy.deepcopy(module()))
    assert len(set(found.values())) == 4


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda m: m["layers"][1][0].weight.data[3, 2].add_(1e-7), "layer 1"),
        (lambda m: m["layers"][2][1].bias.data[0].fill_(-0.0), "layer 2"),  # the bits count
        (lambda m: m["embed"].weight.data[0].neg_(), "the rest"),
        (lambda m: m["layers"][0][0].half(), "layer 0"),
        (lambda m: m["layers"][0][0].register_buffer("mask", torch.ones(2).bool()), "layer 0"),
    ],
)
def test_any_change_shows_in_its_part(change: Any, part: str) -> None:
    changed = module()
    change(changed)
    assert parts_that_differ(module(), changed) == [part]


def test_where_the_same_numbers_lie_counts() -> None:
    changed = module()
    weight = changed["layers"][0][0].weight.data
    weight.copy_(weight.T.clone())
    assert parts_that_differ(module(), changed) == ["layer 0"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex64, torch.int8])
def test_every_number_format(dtype: torch.dtype) -> None:
    def holding(value: float) -> nn.Module:
        holder = nn.Module()
        holder.register_buffer("x", torch.tensor([value, 2]).to(dtype))
        holder.register_buffer("empty", torch.zeros(0, 3, dtype=dtype))
        holder.register_buffer("single", torch.tensor(5).to(dtype))
        return holder

    assert fingerprint_of(holding(3)) == fingerprint_of(holding(3)) != fingerprint_of(holding(4))


def test_what_is_saved_and_no_tensor() -> None:
    class Extra(nn.Module):
        def __init__(self, value: object) -> None:
            super().__init__()
            self.value = value

        def get_extra_state(self) -> object:
            return self.value

        def set_extra_state(self, state: object) -> None:
            self.value = state

    values = [
        3,
        4,
        "3",
        None,
        (torch.ones(2), None),
        (torch.zeros(2), None),
        torch.eye(2).to_sparse(),
    ]
    found = [tuple(fingerprint_of(Extra(value)).values()) for value in values]
    assert len(set(found)) == len(found)
    assert found == [tuple(fingerprint_of(Extra(value)).values()) for value in values]


def decoder(**shape: Any) -> am.Decoder:
    torch.manual_seed(0)
    return am.Decoder(am.DecoderConfig(vocabulary=9, context=6, width=8, heads=2, **shape)).eval()


def test_logits_tell_what_weights_do_not() -> None:
    usual = probe_logits(decoder(), BATCH)
    assert close_logits(usual, probe_logits(decoder(), BATCH))
    rounded = {**usual, "values": [x * (1 + 1e-6) for x in usual["values"]]}
    assert close_logits(usual, rounded)
    hooked = decoder()
    hooked.blocks[1].mlp_hook = hooked.blocks[1].down.register_forward_hook(
        lambda m, i, out: out * 0.99
    )
    assert not close_logits(usual, probe_logits(hooked, BATCH))
    assert not close_logits(usual, probe_logits(decoder().double(), BATCH))
    assert not close_logits(None, usual)
    for token in (5, 8):  # what is done to one token alone
        quiet = decoder()
        with torch.no_grad():
            quiet.embedding.weight[token] = quiet.embedding.weight[token].flip(0)
        assert not close_logits(usual, probe_logits(quiet, BATCH))
    lower = decoder()
    lower.unembedding.register_forward_hook(lambda m, i, out: out - 0.1 * torch.eye(9)[5])
    assert not close_logits(usual, probe_logits(lower, BATCH))


def test_logits_that_are_not_finite_are_compared_too() -> None:
    class Padded(am.Decoder):
        def logits(self, *given: Any, **named: Any) -> torch.Tensor:
            found = super().logits(*given, **named)
            found[..., -1] = -torch.inf
            return found

    usual = decoder()
    padded = Padded(usual.config).eval()
    padded.load_state_dict(usual.state_dict())
    assert None in probe_logits(padded, BATCH)["values"]
    assert close_logits(probe_logits(padded, BATCH), probe_logits(padded, BATCH))
    assert not close_logits(probe_logits(padded, BATCH), probe_logits(usual, BATCH))
