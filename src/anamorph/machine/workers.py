"""Work in other processes.

A worker is a fresh Python that imports this package and nothing of the caller's script. So that
script needs no main guard, and need not even be a file. Calls go to the worker's standard input and
answers come from its standard output, both pickled. It ends when its input does, so that none is
left when the caller is killed.
"""

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, BinaryIO, NamedTuple, TextIO, TypeVar

from anamorph.errors import AnamorphError
from anamorph.progress import Event, Watch, ignore

Call = Callable[[Watch], Any]
"""It can be pickled, such as a `functools.partial` of a function of this package."""

_T = TypeVar("_T")

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from anamorph.machine.workers import serve; serve()"
)


class EndedError(AnamorphError):
    """A worker process ended before its work was done: it crashed, or was killed from outside."""


class _Done(NamedTuple):
    """What a call returned."""

    value: Any


class _Failed(NamedTuple):
    """What a call raised, and where."""

    error: BaseException
    trace: str


class _Warned(NamedTuple):
    """A warning, as `warnings.warn_explicit` takes it."""

    text: str
    category: type[Warning]
    file: str
    line: int


class _Elsewhere(Exception):
    """The traceback of another process, as text."""


def apart(
    calls: Sequence[Call], workers: int, watch: Watch = ignore, seconds: float = math.inf
) -> Generator[Any, None, None]:
    """Make calls in other processes, several at a time.

    At the first failure, and when the caller stops iterating, all processes are killed at once.
    Warnings of the calls are repeated here, each once.

    Args:
        calls: to be made, each with a `watch` of its own.
        workers: how many processes.
        watch: told of the calls' events, in the caller's thread.
        seconds: that all of it may take.

    Yields:
        what the calls return, as they end.

    Raises:
        EndedError: if a process crashes or is ended from outside.
        TimeoutError: if it takes longer than `seconds`; and whatever a call raises.
    """
    answers: SimpleQueue[tuple[_Worker, Any]] = SimpleQueue()
    left, open_ = list(reversed(calls)), len(calls)
    said: set[tuple[str, type[Warning]]] = set()
    processes: list[_Worker] = []
    end = time.monotonic() + seconds
    try:
        for _ in range(min(workers, len(calls))):
            processes.append(_Worker(answers))
            processes[-1].send(left.pop())
        while open_:
            try:  # for a short time: a signal such as Ctrl-C may be delivered to another thread
                worker, answer = answers.get(timeout=0.2)
            except Empty:
                if time.monotonic() > end:
                    raise TimeoutError from None
                continue
            match answer:
                case Event():
                    watch(answer)
                case _Warned(text, category) if (text, category) not in said:
                    said.add((text, category))
                    warnings.warn_explicit(text, category, answer.file, answer.line)
                case _Failed(error, trace):
                    if isinstance(error, AnamorphError):
                        raise error
                    raise error from _Elsewhere(f"\n{trace}")
                case None:
                    raise EndedError(_cause_of_end(worker.process.wait()))
                case _Done(value):
                    open_ -= 1
                    if left:
                        worker.send(left.pop())
                    yield value
    finally:
        for process in processes:
            process.end()


def _cause_of_end(code: int) -> str:
    if code >= 0:
        return (
            f"A worker process ended with code {code} before its work was done; what it printed "
            "to standard error says why."
        )
    return (
        f"A worker process was killed from outside ({signal.Signals(-code).name}), which is what "
        "the system does where memory runs out; what is finished is kept: give the same command "
        "again, with fewer workers."
    )


class _Worker:
    """A process, seen from the caller."""

    def __init__(self, answers: "SimpleQueue[tuple[_Worker, Any]]") -> None:
        path = json.dumps([str(place) for place in sys.path])
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        Thread(target=self._listen, args=(answers,), daemon=True).start()

    def _listen(self, answers: "SimpleQueue[tuple[_Worker, Any]]") -> None:
        """Hand on the answers, and None when the process has ended, perhaps within an answer."""
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            with suppress(EOFError, OSError, pickle.UnpicklingError):
                while True:
                    answers.put((self, pickle.load(stream)))
            answers.put((self, None))

    def send(self, call: Call) -> None:
        """Have a call made. If the process is gone, `_listen` tells so."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            pickle.dump(pickle.dumps(call), self.process.stdin)
            self.process.stdin.flush()

    def end(self) -> None:
        """Kill the process, whatever it is at: what it writes appears whole or not at all."""
        assert self.process.stdin is not None
        self.process.kill()
        self.process.wait()
        with suppress(BrokenPipeError):
            self.process.stdin.close()


def serve() -> None:
    """What a worker process does, until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the caller ends this one
    stdin, stdout = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)  # whatever is printed goes to standard error
    calls: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_take_in, args=(stdin, calls), daemon=True).start()

    def say(answer: object) -> None:
        stdout.write(pickle.dumps(answer))
        stdout.flush()

    def warn(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        say(_Warned(str(message), _portable(category, UserWarning), filename, lineno))

    warnings.showwarning = warn
    while True:
        try:
            say(_Done(pickle.loads(calls.get())(say)))
        except BaseException as error:
            trace = traceback.format_exc()
            say(_Failed(_portable(error, RuntimeError(repr(error))), trace))


def _take_in(stream: BinaryIO, calls: "SimpleQueue[bytes]") -> None:
    """Read calls in a thread, so that this process ends with the caller, whatever it is at."""
    try:
        while True:
            calls.put(pickle.load(stream))
    except EOFError:
        os._exit(1)


def _portable(value: _T, otherwise: _T) -> _T:
    """The value if it can be pickled and read again, or else the other."""
    try:
        pickle.loads(pickle.dumps(value))
    except Exception:
        return otherwise
    return value
