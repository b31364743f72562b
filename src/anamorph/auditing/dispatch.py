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


class Answer(NamedTuple):
    """What a worker says of a job.

    Attributes:
        value: what its call returned.
        error: what it raised, in words; None if it did not.
        again: whether another try may go well.
        lasting: whether no job can go well.
    """

    value: Any
    error: str | None = None
    again: bool = True
    lasting: bool = False


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
        with warnings.catch_warnings(), torch_threads(threads):
            warnings.simplefilter("ignore")  # what they say was said where the study was begun
            return Answer(call())
    except Lasting as error:
        return Answer(None, f"On the node {node}: {error}", lasting=True)
    except AnamorphError as error:
        return Answer(None, str(error), again=isinstance(error, RunFolderError))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(place.filename)}:{place.lineno}, on the node {node}"
        return Answer(None, f"{type(error).__name__}: {error} ({where})")


def versions() -> dict[str, str]:
    """Of what a worker must have the same."""
    return {"anamorph": version(), "torch": torch.__version__}


@dataclass
class _Try:
    """A job that is under way, once or twice."""

    job: Job
    begun: float
    refs: list[Any] = field(default_factory=list)


class Dispatch:
    """Some jobs on their way through a cluster."""

    def __init__(
        self, ray: Any, step: str, jobs: Sequence[Job], watch: Watch, patience: float
    ) -> None:
        self.ray, self.step, self.watch, self.patience = ray, step, watch, patience
        self.total = len(jobs)
        self.waiting = deque(jobs)
        self.running: dict[str, _Try] = {}
        self.by_ref: dict[Any, _Try] = {}
        self.reasons: dict[str, list[str]] = {}
        self.times: deque[float] = deque(maxlen=1000)  # seconds of the last jobs, with their wait
        self.task = ray.remote(carried)
        self.versions = ray.put(versions())
        self.began = self.looked = time.monotonic()
        self.done = 0
        self._look()

    def results(self) -> Iterator[tuple[Job, Any | Failed]]:
        """Every job once, with what it returned."""
        self._say()
        try:
            while self.waiting or self.running:
                self._begin()
                for job, answer in self._ended():
                    if answer.lasting:
                        raise Lasting(answer.error)
                    if answer.error is None:
                        result = answer.value
                    elif (failed := self._failed(job, answer)) is None:
                        continue
                    else:
                        result = failed
                    self.done += 1
                    self._say()
                    yield job, result
                self._look_again()
        finally:
            for ref in self.by_ref:
                self.ray.cancel(ref, force=True)

    def _begin(self) -> None:
        """Have as many jobs under way as are useful."""
        while self.waiting and len(self.by_ref) < AHEAD * self._room(self.waiting[0].needs):
            job = self.waiting.popleft()
            self.running[job.name] = attempt = _Try(job, time.monotonic())
            self._submit(attempt)
        if not self.waiting and self.times:
            usual = max(SLOW * median(self.times), self.patience)
            for attempt in self.running.values():
                free = len(self.by_ref) < self._room(attempt.job.needs)
                if free and len(attempt.refs) == 1 and time.monotonic() - attempt.begun > usual:
                    self._submit(attempt)

    def _submit(self, attempt: _Try) -> None:
        needs = attempt.job.needs
        threads = min(needs.threads, self.most_cpus)
        options = self.task.options(
            num_cpus=threads,
            num_gpus=needs.accelerator or None,
            memory=min(needs.memory, self.most_memory) or None,
            max_retries=0,  # they are counted here
            name=attempt.job.name,
        )
        ref = options.remote(attempt.job.call, needs.threads, self.versions)
        attempt.refs.append(ref)
        self.by_ref[ref] = attempt

    def _room(self, needs: Needs) -> int:
        """How many jobs with such needs can be carried out at a time."""
        cpus = self.cpus // min(needs.threads, self.most_cpus)
        return int(max(1, min(cpus, self.gpus / needs.accelerator) if needs.accelerator else cpus))

    def _ended(self) -> Iterator[tuple[Job, Answer]]:
        """The jobs that ended since it was last asked, at least after a short time."""
        refs = list(self.by_ref)
        ready, _ = self.ray.wait(refs, num_returns=1, timeout=WAIT)
        if ready:  # and whatever else has ended by now
            ready, _ = self.ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref in ready:
            attempt = self.by_ref.pop(ref)
            answer = self._answer(ref)
            if self.running.get(attempt.job.name) is not attempt:
                continue  # the other one was faster
            if answer.error is not None and len(attempt.refs) > 1:
                attempt.refs.remove(ref)  # the other one may do better
                continue
            del self.running[attempt.job.name]
            for other in attempt.refs:
                if other in self.by_ref:
                    self.ray.cancel(other)
            self.times.append(time.monotonic() - attempt.begun)
            yield attempt.job, answer

    def _answer(self, ref: Any) -> Answer:
        errors = self.ray.exceptions
        try:
            return self.ray.get(ref)  # type: ignore[no-any-return]
        except errors.RayTaskError as error:  # before the call: it could not be unpickled, say
            return Answer(None, str(error.cause or error).strip().splitlines()[-1])
        except errors.WorkerCrashedError:
            return Answer(None, "its process ended before it was done, as where memory runs out")
        except errors.NodeDiedError:
            return Answer(None, "its node died before it was done")
        except errors.RayError as error:
            said = str(error).strip().splitlines() or [""]
            return Answer(None, f"{type(error).__name__}: {said[0]}")

    def _failed(self, job: Job, answer: Answer) -> Failed | None:
        """A failure, unless the job is tried again."""
        assert answer.error is not None
        reasons = self.reasons.setdefault(job.name, [])
        reasons.append(answer.error)
        if not answer.again or len(reasons) >= TRIES:
            return Failed(job.name, reasons)
        self.waiting.appendleft(job)
        return None

    def _look_again(self) -> None:
        if time.monotonic() - self.looked > LOOK:
            self._look()
            self._say()

    def _look(self) -> None:
        """What the cluster has now."""
        alive = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        self.nodes, self.looked = len(alive), time.monotonic()
        self.cpus = int(sum(node.get("CPU", 0) for node in alive))
        self.gpus = sum(node.get("GPU", 0) for node in alive)
        self.most_cpus = int(max((node.get("CPU", 0) for node in alive), default=0)) or 1
        self.most_memory = int(max((node.get("memory", 0) for node in alive), default=0))

    def _say(self) -> None:
        rate = self.done / max(time.monotonic() - self.began, 1e-9)
        note = f"{self.nodes} node{'s' if self.nodes != 1 else ''}, {self.cpus} processors"
        if self.done:
            note = f"{rate:.3g} a second, {note}"
        if tried := sum(map(len, self.reasons.values())):
            note = f"{note}, {tried} failed tr{'ies' if tried > 1 else 'y'}"
        self.watch(Event(self.step, self.done, self.total, note))
