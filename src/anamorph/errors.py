"""The one exception that a user is meant to read, and what raises it."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

from safetensors import SafetensorError


class AnamorphError(ValueError):
    """Bad input: the message says what was given, what was expected and what to do.

    The command line prints the message as one paragraph and exits with code 2.
    """


class RunFolderError(AnamorphError):
    """A run folder cannot be used as it is: damaged, of something else, locked, not writable.

    The command line exits with code 3.
    """


@contextmanager
def in_run_folder() -> Iterator[None]:
    """Say of bad input that it lies in a run folder: what reads it does not know where it is from.

    Raises:
        RunFolderError: with the same message.
    """
    try:
        yield
    except AnamorphError as error:
        raise RunFolderError(str(error)) from error


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


@contextmanager
def told_where(what: object, where: object) -> Iterator[None]:
    """Say of what, and where, code that may be somebody else's was called when it failed.

    A file that it cannot read is bad input. Any other error keeps its type and its traceback, and
    gets a note.

    Raises:
        AnamorphError: of one, and of an error of a file, beginning with what and where.
    """
    try:
        yield
    except (AnamorphError, OSError, SafetensorError) as error:
        raise AnamorphError(f"{what}, at {where}: {error}") from error
    except Exception as error:
        error.add_note(f"This was {what}, at {where}.")
        raise
