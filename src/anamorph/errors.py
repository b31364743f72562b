"""The one exception that a user is meant to read, and the check of arguments that raises it."""

from collections.abc import Collection
from numbers import Real
from typing import Any


class AnamorphError(ValueError):
    """Bad input: the message says what was given, what was expected and what to do.

    The command line prints the message as one paragraph and exits with code 2.
    """


def require(
    name: str,
    value: Any,
    *,
    whole: bool = False,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    among: Collection[object] | None = None,
) -> None:
    """Check an argument: a number within bounds, or one of several values.

    Args:
        name: of the argument, after that of its owner: `Decoder: width`.
        value: as it was given.
        whole: whether it must be an integer; `True` and 2.0 are not.
        least: the lowest number that is allowed.
        most: the highest.
        above: a number that it must be above.
        below: a number that it must be below.
        among: all values that are allowed.

    Raises:
        AnamorphError: if the value does not fit; it says what was expected.
    """
    bounds = {"from": least, "above": above, "to": most, "below": below}
    given = " and ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)
    if among is not None:
        fits = value in among
        expected = f"one of {', '.join(map(str, among))}"
    else:
        expected = f"a {'whole number' if whole else 'number'} {given.replace(' and to', ' to')}"
        number = isinstance(value, int if whole else Real) and not isinstance(value, bool)
        fits = (
            number
            and (least is None or value >= least)
            and (above is None or value > above)
            and (most is None or value <= most)
            and (below is None or value < below)
        )
    if not fits:
        raise AnamorphError(f"{name} must be {expected.rstrip()}; got {value!r}.")
