"""What worker processes are asked to do in tests."""

import ctypes
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import anamorph as am
from anamorph.progress import Event, Watch


def double(number: int, watch: Watch) -> int:
    watch(Event("doubling", number, 10))
    return 2 * number


def identify(watch: Watch) -> tuple[int, str, str]:
    return os.getpid(), os.getcwd(), sys.modules["__main__"].__dict__.get("__file__", "none")


def chatter(watch: Watch) -> str:
    print("a library prints")
    os.write(1, b"and another, in C")
    return sys.stdin.read()


def wait(seconds: float, started: Path, watch: Watch) -> None:
    """Takes long, and says that it began and when it came to an end."""
    (started / f"{os.getpid()}.began").touch()
    time.sleep(seconds)
    (started / f"{os.getpid()}.ended").touch()


def wait_in_c(seconds: int, started: Path, watch: Watch) -> None:
    (started / f"{os.getpid()}.began").touch()
    ctypes.PyDLL(None).sleep(seconds)  # the interpreter can do nothing else meanwhile


def fail_when(began: Path, number: int, how: str, watch: Watch) -> None:
    """Fails as soon as so many others are at work."""
    while len(list(began.glob("*.began"))) < number:
        time.sleep(0.01)
    match how:
        case "error":
            raise am.AnamorphError("Seed 1: no.")
        case "bug":
            raise KeyError("a bug")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            sys.exit(3)
        case "gone":
            os._exit(5)


class Odd(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def raise_odd(watch: Watch) -> None:
    raise Odd("odd", "ness")


def give(what: str, watch: Watch) -> Any:
    return lambda: what


def warn(text: str, category: type[Warning], watch: Watch) -> None:
    for _ in range(3):
        warnings.warn(text, category, stacklevel=1)
