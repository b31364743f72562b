"""Hold a run folder, so that no other process works in it.

On this machine the system locks a file, and lets go of it when the process ends. A store has no
locks: there `.holder.json` is created if it is not there, which stores do for one process alone,
and is written again as long as the holder lives. One that was not written for two minutes, by the
store's own clock, is taken over.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple
from uuid import uuid4

from filelock import FileLock, Timeout

from anamorph.errors import RunFolderError
from anamorph.files import write_json
from anamorph.runs.holder import HOLDER, LOCK, STALE, Holder
from anamorph.store import S3, TRIES, Address, StorePath

SHORT = 0.5  # seconds to wait for a lock: whoever asks how far a run is takes it for an instant
CLOCK = ".clock"  # a file that is written to learn the store's time


class Times(NamedTuple):
    """How a run folder in a store is held; all in seconds.

    Attributes:
        beat: between two signs of life.
        stale: without one, after which a holder counts as dead.
        settle: between writing a claim and reading it again, where a store cannot refuse to replace
            what has changed.
        look: after a look at who holds the folder, in which it is not looked again.
    """

    beat: float = 20
    stale: float = STALE
    settle: float = 2
    look: float = 5


@contextmanager
def held(path: Address, times: Times | None = None) -> Iterator[Address]:
    """Hold a run folder; gives the address through which to write to it.

    Args:
        path: the run folder.
        times: how one in a store is held.

    Raises:
        RunFolderError: if another process holds it, or it cannot be written to; in a store also
            from whatever is written through the address after another process has taken over.
    """
    if isinstance(path, StorePath):
        with _held_in_store(path, times or Times()) as guarded:
            yield guarded
        return
    with _locked(path):
        yield path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path / LOCK, timeout=SHORT)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        holder = str(Holder.read(path) or "another process")  # which has only just begun
        raise RunFolderError(
            f"{path} is being worked on by {holder}. Wait for it, or give another --out."
        ) from error
    except OSError as error:
        reason = error.strerror or error
        raise RunFolderError(
            f"Cannot work in {path}: {reason}. Give a folder that is writable and has room."
        ) from error
    try:
        write_json(path / HOLDER, Holder.this()._asdict())
        yield
    finally:
        (path / HOLDER).unlink(missing_ok=True)
        lock.release()


@contextmanager
def _held_in_store(path: StorePath, times: Times) -> Iterator[StorePath]:
    claim = Claim(path, uuid4().hex, times)
    claim.take()
    over = Event()
    beats = Thread(target=claim.beat, args=(over,), name="anamorph-holder", daemon=True)
    beats.start()
    try:
        yield path.guarded(claim)
    finally:
        over.set()
        beats.join()
        claim.let_go()


class Claim:
    """The claim of a process to be the one that works in a run folder in a store.

    Args:
        path: the run folder.
        token: by which the process knows its own claim again.
        times: how it is held.
    """

    def __init__(self, path: StorePath, token: str, times: Times) -> None:
        self.path, self.token, self.times = path, token, times
        self.file = path / HOLDER
        self._holder = Holder.this()
        self._looked = -float("inf")
        self._over = False

    def __reduce__(self) -> tuple[type["Claim"], tuple[StorePath, str, Times]]:
        return Claim, (self.path, self.token, self.times)  # processes of this run share the claim

    def __call__(self) -> None:
        """Make sure that the claim still holds.

        Raises:
            RunFolderError: if another process has taken over.
        """
        if self._over or time.monotonic() - self._looked < self.times.look:
            return
        if self._token_there() != self.token:
            raise RunFolderError(
                f"{self.path} is no longer held by this process: it gave no sign of life for "
                f"{self.times.stale:.0f} s, and {Holder.read(self.path) or 'another process'} took "
                "over. Nothing more is written here; what was written is kept."
            )
        self._looked = time.monotonic()

    def take(self) -> None:
        """Take the folder, from a holder that has died too.

        Raises:
            RunFolderError: if another process holds it, or takes it at the same time.
        """
        for _ in range(TRIES):
            there = self._token_there()
            if there == self.token:
                return
            with suppress(FileExistsError):  # another was faster; or oneself, and nobody said so
                if there is None:
                    self._create()
                else:
                    self._take_over()
        raise self._taken()

    def _create(self) -> None:
        content = self._content(beat=0)
        try:
            self.file.ask("write", lambda fs: fs.pipe_file(self.file.key, content, mode="create"))
        except FileNotFoundError as error:
            raise RunFolderError(
                f"Cannot write to {self.path}: there is no such bucket. Make it, or give another "
                "--out."
            ) from error

    def _take_over(self) -> None:
        there, silent = self.file.info(), self._silent()
        if there is None or silent is None:  # it has just been let go of
            return
        if silent < self.times.stale:
            raise self._taken(silent)
        self._write(self._content(beat=0), there)
        if self.path.scheme not in S3:
            time.sleep(self.times.settle)

    def _taken(self, silent: float | None = None) -> RunFolderError:
        holder = Holder.read(self.path) or "another process"
        last = "" if silent is None else f", which gave a sign of life {max(silent, 0):.0f} s ago"
        return RunFolderError(
            f"{self.path} is being worked on by {holder}{last}. Wait for it, or give another "
            f"--out. If it was killed, the same command goes on {self.times.stale:.0f} s after the "
            "last sign."
        )

    def _silent(self) -> float | None:
        """Seconds since the holder was last written, by the store's clock; None if it is gone."""
        clock = self.path / CLOCK
        try:
            clock.ask("write", lambda fs: fs.pipe_file(clock.key, b""))
            now = clock.ask("look for", lambda fs: fs.modified(clock.key))
            then = self.file.ask("look for", lambda fs: fs.modified(self.file.key))
        except FileNotFoundError:
            return None
        finally:
            clock.unlink(missing_ok=True)
        return float((now - then).total_seconds())

    def beat(self, over: Event) -> None:
        """Give signs of life until it is over, or another process has taken over."""
        for beat in count(1):
            if over.wait(self.times.beat):
                return
            # The store cannot be reached, or did not say that it was written: again at the next.
            with suppress(RunFolderError, FileExistsError):
                there = self.file.info()
                if there is None or self._token_there() != self.token:
                    return
                self._write(self._content(beat), there)

    def let_go(self) -> None:
        """End the claim, so that others need not wait until it counts as dead."""
        self._over = True
        with suppress(RunFolderError):  # then they wait
            if self._token_there() == self.token:
                self.file.unlink(missing_ok=True)

    def _write(self, content: bytes, there: dict[str, Any]) -> None:
        """Write the file unless it has changed, where the store can tell; else in any case."""
        unchanged = {"IfMatch": there["ETag"]} if self.path.scheme in S3 else {}
        with suppress(FileNotFoundError):  # it has just been let go of
            self.file.ask("write", lambda fs: fs.pipe_file(self.file.key, content, **unchanged))

    def _content(self, beat: int) -> bytes:
        """What the file says; it differs with every beat, so that its tag tells of each."""
        said = self._holder._asdict() | {"token": self.token, "beat": beat}
        return json.dumps(said, ensure_ascii=False).encode("utf-8", "backslashreplace")

    def _token_there(self) -> str | None:
        """Of the claim that is there; None if there is none, "" if it is damaged."""
        try:
            content = self.file.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return str(json.loads(content)["token"])
        except (ValueError, KeyError, TypeError):
            return ""
