"""The check of arguments against what Python itself says of the numbers."""

from itertools import product
from math import inf, nan

import pytest

from anamorph.errors import AnamorphError, require

VALUES = (-1, 0, 1, 2, 3, 0.5, 1.0, 2.5, nan, inf, -inf, True, False, "1", None, [1])


def passes(value: object, **rules: object) -> bool:
    try:
        require("x", value, **rules)
    except AnamorphError:
        return False
    return True


@pytest.mark.parametrize(("value", "whole"), list(product(VALUES, (True, False))))
def test_a_number_fits_if_it_lies_within_all_bounds(value, whole):
    is_number = type(value) is int or (not whole and type(value) is float)
    assert passes(value, whole=whole, least=1) == (is_number and value >= 1)
    assert passes(value, whole=whole, above=1) == (is_number and value > 1)
    assert passes(value, whole=whole, least=0, most=2) == (is_number and 0 <= value <= 2)
    assert passes(value, whole=whole, above=0, below=2) == (is_number and 0 < value < 2)


@pytest.mark.parametrize(
    ("value", "rules", "expected"),
    [
        (0, {"whole": True, "least": 1}, "a whole number from 1; got 0."),
        (9, {"whole": True, "least": 1, "most": 8}, "a whole number from 1 to 8; got 9."),
        (nan, {"above": 0}, "a number above 0; got nan."),
        (1.5, {"least": 0, "most": 1}, "a number from 0 to 1; got 1.5."),
        (1, {"above": 0, "below": 1}, "a number above 0 and below 1; got 1."),
        ("2", {"whole": True}, "a whole number; got '2'."),
        ("z", {"among": ("a", "b")}, "one of a, b; got 'z'."),
        (["a"], {"among": ("a", "b")}, "one of a, b; got ['a']."),
    ],
)
def test_an_error_says_what_was_expected_and_what_was_given(value, rules, expected):
    with pytest.raises(AnamorphError) as caught:
        require("Owner: x", value, **rules)
    assert str(caught.value) == f"Owner: x must be {expected}"
