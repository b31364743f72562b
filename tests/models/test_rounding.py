"""When two tensors are the same but for rounding, whatever else stands in them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anamorph.models.wrapped import largest_difference, same_up_to_rounding

MASKS = [-math.inf, -1e30, -1e9, -65504.0, -1e4, -100.0, 1e9]


def ordinary(seed: int, rows: int, columns: int, sigma: float, shift: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * sigma + shift


def plainly(a: Tensor, b: Tensor, sigma: float) -> bool:
    """Element by element: equal, or the difference is small for numbers with this sigma."""
    for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True):
        if not (math.isfinite(x) and math.isfinite(y)):
            if x != y:  # also where one is NaN
                return False
        elif abs(x - y) > 1e-3 * sigma + 1e-5 * abs(y):
            return False
    return True


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.sampled_from([2, 5, 12, 60]),
    columns=st.sampled_from([10, 50, 400]),
    sigma=st.sampled_from([1e-3, 0.1, 1.0, 30.0]),
    masked=st.sampled_from([0.0, 0.05, 0.3, 0.5, 0.9]),
    value=st.sampled_from(MASKS),
    everywhere=st.booleans(),
    added=st.booleans(),
    by_row=st.booleans(),  # of what is not added
    change=st.sampled_from([1e-7, 1e-6, 0.02, 1.0]),
    data=st.data(),
)
def test_a_mask_neither_hides_a_change_nor_makes_one(
    seed: int,
    rows: int,
    columns: int,
    sigma: float,
    masked: float,
    value: float,
    everywhere: bool,
    added: bool,
    by_row: bool,
    change: float,
    data: st.DataObject,
) -> None:
    """A change, in sigmas, of one ordinary number: of rounding's size, or larger."""
    b = ordinary(seed, rows, columns, sigma, 0.0)
    hidden = torch.zeros(rows, columns, dtype=torch.bool)
    count = int(masked * columns)
    if everywhere or value > 0:
        hidden[:, columns - count :] = True
    else:  # other columns in every row, as where a grammar says what may follow
        ranks = ordinary(seed + 1, rows, columns, 1.0, 0.0).argsort(-1)
        hidden = ranks < count
    mask = torch.tensor(value) * (1 + torch.arange(rows)[:, None] * (by_row and not added))
    b = torch.where(hidden, mask + b if added else mask, b)
    a = b.clone()
    row, column = data.draw(st.sampled_from((~hidden).nonzero().tolist()))
    a[row, column] += change * sigma
    assert same_up_to_rounding(a, b) == plainly(a, b, sigma)
    assert same_up_to_rounding(b, b)


@pytest.mark.parametrize("shift", [0.0, -100.0, 1e4])
def test_what_is_common_to_all_numbers_hides_no_change(shift: float) -> None:
    b = ordinary(0, 12, 100, 1.0, shift)
    assert not same_up_to_rounding(b + 0.2 * torch.eye(12, 100), b)
    assert same_up_to_rounding(b * (1 + 2e-7), b)


@pytest.mark.parametrize("masked", [0, 3, 30, 90])
@pytest.mark.parametrize("value", [-math.inf, -1e9, -65504.0])
def test_sums_in_another_order_are_the_same(masked: int, value: float) -> None:
    """In three number formats; a change of a tenth of the spread is seen in each."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 256, generator=generator)
    w = torch.randn(256, 100, generator=generator)
    order = torch.randperm(256, generator=generator)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        one, other = x.to(dtype) @ w.to(dtype), x.to(dtype)[:, order] @ w.to(dtype)[order]
        for y in (one, other):
            y[:, 100 - masked :] = (
                max(value, torch.finfo(dtype).min) if value > -math.inf else value
            )
        assert same_up_to_rounding(one, other)
        other[3, 4] += 0.1 * 16 + 0.03 * other[3, 4].abs()
        assert not same_up_to_rounding(one, other)


def test_sums_of_half_precision_with_a_large_vocabulary() -> None:
    """Where many numbers are equal because there are so few."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(4, 64, generator=generator), torch.randn(64, 30_000, generator=generator)
    for shift in (0.0, -100.0):
        exact = (x @ w) / 4 + shift
        half = exact.bfloat16()
        assert same_up_to_rounding(half, exact)
        assert same_up_to_rounding((exact + 0.005 * torch.randn_like(exact)).bfloat16(), half)
        assert not same_up_to_rounding((exact[[1, 0, 2, 3]]).bfloat16(), half)


def test_infinity_is_infinity_in_the_same_place_only() -> None:
    b = torch.tensor([[0.5, -math.inf, 2.0], [1.0, math.inf, 3.0]])
    assert same_up_to_rounding(b.clone(), b)
    for value in (-1e38, math.inf, math.nan):
        a = b.clone()
        a[0, 1] = value
        assert not same_up_to_rounding(a, b)
        assert not same_up_to_rounding(b, a)
    assert not same_up_to_rounding(b.roll(1, 1), b)
    assert same_up_to_rounding(torch.full((2, 3), -math.inf), torch.full((2, 3), -math.inf))


def test_nan_and_other_shapes_are_not_the_same() -> None:
    nan = torch.tensor([1.0, math.nan])
    assert not same_up_to_rounding(nan, nan)
    assert not same_up_to_rounding(torch.zeros(2, 3), torch.zeros(3, 2))
    assert not same_up_to_rounding(torch.zeros(1), None)
    assert same_up_to_rounding(torch.zeros(0, 3), torch.zeros(0, 3))


def test_small_numbers_are_compared_as_large_ones() -> None:
    b = ordinary(0, 12, 100, 1e-5, 0.0)
    assert not same_up_to_rounding(b.roll(1, 0), b)
    assert same_up_to_rounding(b * (1 + 1e-6), b)


def test_the_largest_difference_is_one_that_counts() -> None:
    b = torch.cat([ordinary(0, 4, 50, 1.0, 0.0), torch.full((4, 50), -1e9)], dim=1)
    a = b.clone()
    a[0, 3] += 0.5
    a[1, 70] += 64  # rounding, so far from 0
    assert largest_difference(a, b) == pytest.approx(0.5, abs=1e-6)
    assert largest_difference(b, b) == 0
