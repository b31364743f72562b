"""Jobs on a Ray cluster, or on several processes of this machine.

Every job is a Ray task. Objects that jobs share lie packed in Ray's object store: each comes to a
machine once, and its workers read weights and data where they lie. This process keeps a few more
jobs under way than there is room for, counts how often each was tried, and begins a slow one a
second time where nothing else is left to do; the first result counts.
"""

from __future__ import annotations

import os
import random
import socket
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import torch

from anamorph.auditing.local import TRIES, Engine, Failed, Job, Lasting, Needs, Shared
from anamorph.errors import AnamorphError, RunFolderError
from anamorph.machine.packed import Packed, pack, unpack
from anamorph.machine.process import as_found, processors
from anamorph.machine.threads import torch_threads
from anamorph.progress import Event, Watch
from anamorph.version import version

_T = TypeVar("_T")

AHEAD = 2  # jobs under way, for each that there is room for
HELD = 8  # shared objects that a worker keeps
LOOK = 5.0  # seconds between two looks at the nodes
REACHED = 10.0  # seconds until an address counts as not reached
WAIT = 0.2  # seconds for a result, until signals are looked at
SLOW = 3.0
"""A job is begun a second time if it takes so many times as long as usual."""


class RayEngine(Engine):
    """A Ray cluster.

    Args:
        address: of the cluster, such as `auto` for the one that this machine belongs to, or
            `ray://host:10001`; None for the one that this process is connected to, that the
            environment variable RAY_ADDRESS names, or else for one on this machine alone, which is
            begun here and ended afterwards.
        workers: without an address: jobs at a time, a thread each; None for as many as there are
            processors.
        patience: seconds that any job may take before it is thought to be slow.

    Raises:
        AnamorphError: if Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(
        self, address: str | None = None, workers: int | None = None, patience: float = 10.0
    ) -> None:
        self.address, self.workers, self.patience = address, workers, patience
        self._ours, self._users = False, 0
        self._folder: TemporaryDirectory[str] | None = None
        try:
            with as_found():
                import ray
        except ImportError as error:
            raise AnamorphError(
                "The engine 'ray' needs Ray, which is not installed here: pip install "
                "'anamorph[ray]'; or leave --engine out, and this machine does the work."
            ) from error
        self._ray: Any = ray

    def __enter__(self) -> RayEngine:
        if not self._users and not self._ray.is_initialized():
            self._connect()
            self._ours = True
        self._users += 1
        return self

    def _connect(self) -> None:
        address = self.address or os.environ.get("RAY_ADDRESS")
        options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if not address:  # a cluster of this machine alone, reached from nowhere else
            self._folder = TemporaryDirectory(prefix="anamorph-ray-", ignore_cleanup_errors=True)
            options |= {"num_cpus": self.workers or processors(), "include_dashboard": False}
            options |= {"_node_ip_address": "127.0.0.1", "_temp_dir": self._folder.name}
        try:
            _require_reached(address)
            with as_found(), warnings.catch_warnings(action="ignore"):
                os.environ |= {"RAY_USAGE_STATS_ENABLED": "0"}
                os.environ |= {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
                self._ray.init(address=address or "local", **options)
        except (OSError, RuntimeError, ValueError) as error:
            raise AnamorphError(
                f"Cannot connect to the Ray cluster {address or 'of this machine'}: {error}. Is it "
                "running (`ray status`)? Give its --address, or none to work on this machine alone."
            ) from error

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        if not self._users and self._ours:
            self._ray.shutdown()
            self._ours = False
            if self._folder is not None:
                self._folder.cleanup()

    def share(self, value: _T) -> _InStore[_T]:
        """Put an object into the object store, packed."""
        packed = pack(value, self._ray.cloudpickle.CloudPickler)
        return _InStore(self._ray.put(packed))

    def share_made(self, make: Callable[[], _T | None], value: _T) -> Shared[_T]:
        """Have every node make an object, which its workers share; see `Engine.share_made`."""
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        made: Any = self._ray.remote(num_cpus=0, num_returns=2, max_retries=TRIES)(_made)
        begun = {
            node["NodeID"]: made.options(
                scheduling_strategy=strategy(node["NodeID"], soft=False)
            ).remote(make)
            for node in self._ray.nodes()
            if node["Alive"] and node["Resources"].get("CPU")
        }
        refs, ours = {}, None
        for node, (answer, ref) in begun.items():
            found: _Answer = self._ray.get(answer)
            if found.error is not None:
                raise Lasting(found.error)
            if not found.value:
                ours = ours or self.share(value).ref
            refs[node] = ref if found.value else ours
        return _OnNodes(refs)

    def carry(
        self, step: str, jobs: Sequence[Job], watch: Watch
    ) -> Iterator[tuple[Job, Any | Failed]]:
        """See `Engine.carry`; a job that fails is tried again, up to five times in all."""
        return _Dispatch(self._ray, step, jobs, watch, self.patience).results()


def _require_reached(address: str | None) -> None:
    """Find out in seconds whether anybody listens at an address; Ray itself would wait for long.

    Raises:
        OSError: if nobody does.
    """
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED).close()


class _InStore(Shared[_T]):
    """An object in Ray's object store."""

    def __init__(self, ref: Any) -> None:
        self.ref = ref

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _InStore) and self.ref == other.ref

    def __hash__(self) -> int:
        return hash(self.ref)

    def get(self) -> _T:
        """The object; a process unpacks it once."""
        return _unpacked(self)  # type: ignore[no-any-return]


class _OnNodes(Shared[_T]):
    """An object of which every node has its own.

    Args:
        refs: by the nodes' names.
    """

    def __init__(self, refs: Mapping[str, Any]) -> None:
        self.refs = dict(refs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _OnNodes) and self.refs == other.refs

    def __hash__(self) -> int:
        return hash(tuple(self.refs.values()))

    def get(self) -> _T:
        """The object of this node, or of another if this one came later."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        ref = self.refs.get(node) or random.choice(list(self.refs.values()))
        return _unpacked(_InStore(ref))  # type: ignore[no-any-return]


@lru_cache(maxsize=HELD)
def _unpacked(shared: _InStore[Any]) -> Any:
    import ray

    packed: Packed = ray.get(shared.ref)
    return unpack(packed)


def _made(make: Callable[[], Any]) -> tuple[_Answer, Packed | None]:
    """An object that a node makes for itself, packed, and before it whether it could."""
    import ray

    answer = _carried(make, 1, _versions())
    packed = None if answer.value is None else pack(answer.value, ray.cloudpickle.CloudPickler)
    return answer._replace(value=packed is not None), packed


class _Answer(NamedTuple):
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


def _carried(call: Callable[[], Any], threads: int, expected: dict[str, str]) -> _Answer:
    """Make a call, in a worker."""
    node = socket.gethostname()
    different = [
        f"{k} {v}, and here {_versions()[k]}" for k, v in expected.items() if v != _versions()[k]
    ]
    if different:
        said = f"The node {node} has other packages: where the command was given {different[0]}."
        return _Answer(None, f"{said} Install the same on all nodes.", lasting=True)
    try:
        with warnings.catch_warnings(), torch_threads(threads):
            warnings.simplefilter("ignore")  # what they say was said where the study was begun
            return _Answer(call())
    except Lasting as error:
        return _Answer(None, f"On the node {node}: {error}", lasting=True)
    except AnamorphError as error:
        return _Answer(None, str(error), again=isinstance(error, RunFolderError))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(place.filename)}:{place.lineno}, on the node {node}"
        return _Answer(None, f"{type(error).__name__}: {error} ({where})")


def _versions() -> dict[str, str]:
    return {"anamorph": version(), "torch": torch.__version__}


@dataclass
class _Try:
    """A job that is under way, once or twice."""

    job: Job
    begun: float
    refs: list[Any] = field(default_factory=list)


class _Dispatch:
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
        self.task = ray.remote(_carried)
        self.versions = ray.put(_versions())
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

    def _ended(self) -> Iterator[tuple[Job, _Answer]]:
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

    def _answer(self, ref: Any) -> _Answer:
        errors = self.ray.exceptions
        try:
            return self.ray.get(ref)  # type: ignore[no-any-return]
        except errors.RayTaskError as error:  # before the call: it could not be unpickled, say
            return _Answer(None, str(error.cause or error).strip().splitlines()[-1])
        except (errors.RayError, errors.TaskCancelledError) as error:
            said = str(error).strip().splitlines() or [""]
            return _Answer(None, f"{type(error).__name__}: {said[0]}")

    def _failed(self, job: Job, answer: _Answer) -> Failed | None:
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
