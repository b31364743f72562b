"""Causal attention in blocks against torch's, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from anamorph.models.causal import BLOCK, causal_attention


@pytest.mark.parametrize("length", [1, 7, BLOCK, BLOCK + 1, 3 * BLOCK - 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_and_gradients_are_those_of_torch(length: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(length)
    given = torch.randn(4, 2, 3, length, 8, generator=generator, dtype=dtype)
    given[0] *= 3  # sharp patterns
    wanted = given[3]
    ours, theirs = ([x.clone().requires_grad_() for x in given[:3]] for _ in range(2))
    output = causal_attention(*ours)
    reference = F.scaled_dot_product_attention(*theirs, is_causal=True)
    tolerance = {"atol": 1e-4 if dtype == torch.float32 else 1e-12, "rtol": 0.0}
    torch.testing.assert_close(output, reference, **tolerance)
    output.backward(wanted)
    reference.backward(wanted)
    for x, y in zip(ours, theirs, strict=True):
        assert x.grad is not None and y.grad is not None
        torch.testing.assert_close(x.grad, y.grad, **tolerance)


def test_what_stands_behind_a_position_has_no_say() -> None:
    query, key, value = torch.randn(3, 1, 2, 100, 4, dtype=torch.float64)
    whole = causal_attention(query, key, value)
    for end in (1, 30, 64, 65):
        cut = causal_attention(query[..., :end, :], key[..., :end, :], value[..., :end, :])
        torch.testing.assert_close(cut, whole[..., :end, :], atol=1e-12, rtol=0.0)


def test_half_precision_goes_to_torch() -> None:
    x = torch.randn(1, 1, 5, 4).bfloat16()
    assert torch.equal(
        causal_attention(x, x, x), F.scaled_dot_product_attention(x, x, x, is_causal=True)
    )
