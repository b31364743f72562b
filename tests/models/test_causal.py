"""Causal attention in blocks against torch's, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from anamorph.models.causal import BLOCK, causal_attention


def packed(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Queries, keys and values of [batch, position, head, dim]."""
    batch, length, heads, dim = shape
    generator = torch.Generator().manual_seed(length)
    given = torch.randn(batch, length, 3, heads, dim, generator=generator, dtype=dtype)
    given[:, :, 0] *= 3  # sharp patterns
    return given


def turns(length: int, dim: int) -> torch.Tensor:
    angles = torch.arange(length)[:, None] * 0.7 ** torch.arange(dim // 2)
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


def plain(given: torch.Tensor, turn: torch.Tensor | None) -> torch.Tensor:
    """With torch's attention, and with rotations as matrices."""
    query, key, value = given.permute(2, 0, 3, 1, 4)
    if turn is not None:
        cos, sin = turn.to(given.dtype).unbind(-1)
        pairs = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
        query, key = (
            torch.einsum("pdij,bhpdj->bhpdi", pairs, x.unflatten(-1, (-1, 2))).flatten(-2)
            for x in (query, key)
        )
    return F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("length", [1, 7, BLOCK, BLOCK + 1, 3 * BLOCK - 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_and_gradients_are_those_of_torch(
    length: int, dtype: torch.dtype, turned: bool
) -> None:
    given = packed(2, length, 3, 8, dtype=dtype)
    turn = turns(length, 8) if turned else None
    ours, theirs = (given.clone().requires_grad_() for _ in range(2))
    output, reference = causal_attention(ours, turn), plain(theirs, turn)
    atol = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(output, reference, atol=atol, rtol=0.0)
    wanted = packed(2, length, 3, 8, dtype=dtype)[:, :, 1]
    output.backward(wanted)
    reference.backward(wanted)
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, atol=atol, rtol=0.0)


@pytest.mark.parametrize("shape", [(1, 5, 3, 4), (2, 5, 1, 4), (1, 5, 1, 4), (1, 1, 1, 2)])
def test_what_is_given_stays_as_it_is(shape: tuple[int, ...]) -> None:
    given = packed(*shape)
    before = given.clone()
    causal_attention(given, turns(shape[1], shape[3]))
    assert torch.equal(given, before)


def test_what_stands_behind_a_position_has_no_say() -> None:
    given = packed(1, 100, 2, 4)
    whole = causal_attention(given)
    for end in (1, 30, 64, 65):
        cut = causal_attention(given[:, :end])
        torch.testing.assert_close(cut, whole[:, :end], atol=1e-12, rtol=0.0)


@pytest.mark.parametrize("turned", [False, True])
def test_half_precision_goes_to_torch(turned: bool) -> None:
    given = packed(1, 5, 2, 4).bfloat16()
    turn = turns(5, 4) if turned else None
    found = causal_attention(given, turn)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, plain(given, turn), atol=0.03, rtol=0.0)
