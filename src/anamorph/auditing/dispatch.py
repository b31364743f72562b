"""Jobs on their way through a Ray cluster: begun, tried again, and told of as they end."""

from __future__ import annotations

import os
import socket
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from anamorph.auditing.local import TRIES, Failed, Job, Lasting, Needs
from anamorph.errors import AnamorphError, RunFolderError
from anamorph.machine.threads import torch_threads
from anamorph.progress import Event, Watch
from anamorph.version import version

AHEAD = 2  # jobs under way, for each that there is room for
LOOK = 5.0  # seconds between two looks at the nodes
WAIT = 0.2  # seconds for a result, until signals are looked at
SLOW = 3.0
"""A job is begun a second time if it takes so many times as long as usual."""
PAUSES = 1.0, 5.0, 30.0, 100.0
"""Seconds before the next try of a job that could not use its run folder: another process may
hold it, or its store be busy; see `anamorph.runs.holder`."""
OURS = Path(__file__).parent.parent


class Answer(NamedTuple):
    """What a worker says of a job.

    Attributes:
        value: what its call returned.
        error: what it raised, in words; None if it did not.
        again: whether another try may go well.
        later: whether that is so after a while.
        lasting: whether no job can go well.
        warned: what this package warned of.
    """

    value: Any
    error: str | None = None
    again: bool = True
    later: bool = False
    lasting: bool = False
    warned: tuple[str, ...] = ()


def carried(call: Callable[[], Any], threads: int, expected: dict[str, str]) -> Answer:
    """Make a call, in a worker."""
    node = socket.gethostname()
    different = [
        f"{k} {v}, and here {versions()[k]}" for k, v in expected.items() if v != versions()[k]
    ]
    if different:
        said = f"The node {node} has other packages: where the command was given {different[0]}."
        return Answer(None, f"{said} Install the same on all nodes.", lasting=True)
    try:
        with warnings.catch_warnings(record=True) as found, torch_threads(threads):
            warnings.simplefilter("always")
            value = call()
        # What is shared can only be read, which torch warns of where it is first used.
        every = dict.fromkeys(str(w.message) for w in found if OURS in Path(w.filename).parents)
        ours = [text for text in every if "not writable" not in text]
        return Answer(value, warned=tuple(ours))
    except Lasting as error:
        return Answer(None, f"On the node {node}: {error}", lasting=True)
    except AnamorphError as error:
        later = isinstance(error, RunFolderError)
        return Answer(None, str(error), again=later, later=later)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(place.filename)}:{place.lineno}, on the node {node}"
        return Answer(None, f"{type(error).__name__}: {error} ({where})")


def versions() -> dict[str, str]:
    """Of what a worker must have the same."""
    return {"anamorph": version(), "torch": torch.__version__}


class _Room(NamedTuple):
    """What a node has, or a task asks for."""

    cpus: int
    gpus: float
    memory: int

    def holds(self, asked: _Room) -> bool:
        return all(has >= wants for has, wants in zip(self, asked, strict=True))


@dataclass
class _Try:
    """A job that is under way.

    Attributes:
        job: which.
        asked: what its tasks ask for.
        begun: when the last of them was.
        refs: those that have not ended.
        copies: how many there were.
    """

    job: Job
    asked: _Room
    begun: float = 0.0
    refs: list[Any] = field(default_factory=list)
    copies: int = 0


class Dispatch:
    """Some jobs on their way through a cluster."""

    def __init__(
        self, ray: Any, step: str, jobs: Sequence[Job], watch: Watch, patience: float
    ) -> None:
        self.ray, self.step, self.watch, self.patience = ray, step, watch, patience
        self.total = len(jobs)
        self.waiting = deque(jobs)
        self.later: list[tuple[float, Job]] = []  # when they may be tried again
        self.running: dict[str, _Try] = {}
        self.by_ref: dict[Any, _Try] = {}
        self.reasons: dict[str, list[str]] = {}
        self.warned: set[str] = set()
        self.times: deque[float] = deque(maxlen=1000)  # seconds of the last jobs, with their wait
        self.task = ray.remote(carried)
        self.versions = ray.put(versions())
        self.began = time.monotonic()
        self.done = 0
        self.nodes: dict[str, _Room] = {}
        self._look()

    def results(self) -> Iterator[tuple[Job, Any | Failed]]:
        """Every job once, with what it returned."""
        self._say()
        ended = False
        try:
            while self.waiting or self.later or self.running:
                self._begin()
                for job, result in self._ended():
                    self.done += 1
                    self._say()
                    yield job, result
                if time.monotonic() - self.looked > LOOK:
                    self._look()
                    self._say()
            ended = True
        finally:
            for ref in self.by_ref:  # after the end, second copies alone, which change nothing
                self.ray.cancel(ref, force=not ended)

    def _begin(self) -> None:
        """Have as many jobs under way as are useful."""
        now = time.monotonic()
        self.waiting.extend(job for when, job in self.later if when <= now)
        self.later = [(when, job) for when, job in self.later if when > now]
        while self.waiting and len(self.by_ref) < AHEAD * self._room(self.waiting[0].needs):
            job = self.waiting.popleft()
            self.running[job.name] = attempt = _Try(job, self._asked(job.needs))
            self._submit(attempt)
        if not self.waiting and self.times:
            usual = max(SLOW * median(self.times), self.patience)
            for attempt in self.running.values():
                may = attempt.job.twice and attempt.copies == 1 and now - attempt.begun > usual
                if may and len(self.by_ref) < self._room(attempt.job.needs):
                    self._submit(attempt)

    def _submit(self, attempt: _Try) -> None:
        job, asked = attempt.job, attempt.asked
        options = self.task.options(
            num_cpus=asked.cpus,
            num_gpus=asked.gpus or None,
            memory=asked.memory or None,
            max_retries=0,  # they are counted here
            name=job.name,
        )
        ref = options.remote(job.call, job.needs.threads, self.versions)
        attempt.refs.append(ref)
        attempt.copies += 1
        attempt.begun = time.monotonic()
        self.by_ref[ref] = attempt

    def _asked(self, needs: Needs) -> _Room:
        """What to ask for: no more than some node has, however many threads there will be.

        Raises:
            Lasting: if a GPU is needed, and no node has one.
        """
        able = [node for node in self.nodes.values() if node.gpus >= needs.accelerator]
        if not able and self.nodes:
            raise Lasting(
                "The study computes on a GPU, and no node of the cluster has one. Give --device "
                "cpu, or a cluster with GPUs."
            )
        best = max(able, default=_Room(1, needs.accelerator, 0))
        threads = max(1, min(needs.threads, best.cpus))
        return _Room(threads, needs.accelerator, min(needs.memory, best.memory))

    def _room(self, needs: Needs) -> int:
        """How many jobs with such needs can be carried out at a time."""
        asked = self._asked(needs)
        rooms = [node.cpus // asked.cpus for node in self.nodes.values()]
        if asked.gpus:
            gpus = (int(node.gpus / asked.gpus) for node in self.nodes.values())
            rooms = list(map(min, rooms, gpus))
        return max(1, sum(rooms))

    def _ended(self) -> Iterator[tuple[Job, Any | Failed]]:
        """The jobs that ended since it was last asked, at least after a short time."""
        refs = list(self.by_ref)
        if not refs:
            time.sleep(WAIT)
            return
        ready, _ = self.ray.wait(refs, num_returns=1, timeout=WAIT)
        if ready:  # and whatever else has ended by now
            ready, _ = self.ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref in ready:
            attempt = self.by_ref.pop(ref)
            answer = self._answer(ref)
            if self.running.get(attempt.job.name) is not attempt:
                continue  # the other one was faster
            attempt.refs.remove(ref)
            self._warn(answer.warned)
            if answer.lasting:
                raise Lasting(answer.error)
            if answer.error is None:
                self._over(attempt)
                self.times.append(time.monotonic() - attempt.begun)
                yield attempt.job, answer.value
            elif (failed := self._failed(attempt, answer)) is not None:
                yield attempt.job, failed

    def _over(self, attempt: _Try) -> None:
        """Let go of a job; what is left of it is not waited for."""
        del self.running[attempt.job.name]
        for ref in attempt.refs:
            self.ray.cancel(ref)

    def _failed(self, attempt: _Try, answer: Answer) -> Failed | None:
        """A failure, unless the job is tried again, or another try of it is under way."""
        assert answer.error is not None
        job = attempt.job
        reasons = self.reasons.setdefault(job.name, [])
        reasons.append(answer.error)
        if not answer.again or len(reasons) >= TRIES:
            self._over(attempt)
            return Failed(job.name, reasons)
        if not attempt.refs:
            self._over(attempt)
            if answer.later:
                self.later.append((time.monotonic() + PAUSES[len(reasons) - 1], job))
            else:
                self.waiting.appendleft(job)
        return None

    def _answer(self, ref: Any) -> Answer:
        errors = self.ray.exceptions
        try:
            return self.ray.get(ref)  # type: ignore[no-any-return]
        except errors.RayTaskError as error:  # before the call: it could not be unpickled, say
            cause = error.cause or error
            said = str(cause).strip().splitlines() or [type(cause).__name__]
            return Answer(None, said[-1])
        except errors.WorkerCrashedError:
            return Answer(None, "its process ended before it was done, as where memory runs out")
        except errors.NodeDiedError:
            return Answer(None, "its node died before it was done")
        except errors.RayError as error:
            said = str(error).strip().splitlines() or [""]
            return Answer(None, f"{type(error).__name__}: {said[0]}")

    def _warn(self, texts: Sequence[str]) -> None:
        """Repeat what jobs warned of, each once."""
        for text in texts:
            if text not in self.warned:
                self.warned.add(text)
                warnings.warn(text, stacklevel=2)

    def _look(self) -> None:
        """See what the cluster has now; what no node can do any more is asked for anew."""
        before, self.nodes = self.nodes, {}
        alive = [node for node in self.ray.nodes() if node["Alive"]]
        for node in alive:
            has = node["Resources"]
            room = _Room(int(has.get("CPU", 0)), has.get("GPU", 0), int(has.get("memory", 0)))
            if room.cpus:
                self.nodes[node["NodeID"]] = room
        self.alive, self.looked = len(alive), time.monotonic()
        if before == self.nodes or not self.nodes:
            return
        for attempt in list(self.running.values()):
            if not any(node.holds(attempt.asked) for node in self.nodes.values()):
                self._over(attempt)
                self.waiting.appendleft(attempt.job)

    def _say(self) -> None:
        rate = self.done / max(time.monotonic() - self.began, 1e-9)
        cpus = sum(node.cpus for node in self.nodes.values())
        note = f"{self.alive} node{'s' if self.alive != 1 else ''}, {cpus} processors"
        if self.done:
            note = f"{rate:.3g} a second, {note}"
        if tried := sum(map(len, self.reasons.values())):
            note = f"{note}, {tried} failed tr{'ies' if tried > 1 else 'y'}"
        self.watch(Event(self.step, self.done, self.total, note))
