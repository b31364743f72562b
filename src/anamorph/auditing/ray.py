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
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from anamorph.auditing.dispatch import Answer, Dispatch, carried, versions
from anamorph.auditing.local import TRIES, Engine, Failed, Job, Lasting, Shared
from anamorph.errors import AnamorphError
from anamorph.machine.packed import Packed, pack, unpack
from anamorph.machine.process import as_found, processors
from anamorph.progress import Watch

_T = TypeVar("_T")

HELD = 8  # shared objects that a worker keeps
REACHED = 10.0  # seconds until an address counts as not reached


class RayEngine(Engine):
    """A Ray cluster.

    Args:
        address: of the cluster, such as `auto` for the one that this machine belongs to, or
            `10.0.0.1:6379`; None for the one that this process is connected to, that the
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
        self._said: Callable[..., None] = _said_nothing
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
        if not self._ray.is_initialized():
            self._connect()
            self._ours = True
            self._said = _silenced(_said_nothing)
        elif not self._users:
            self._require_connected()
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
            said = (str(error).strip().splitlines() or [repr(error)])[0].rstrip(".")
            raise AnamorphError(
                f"Cannot connect to the Ray cluster {address or 'of this machine'}: {said}. Is it "
                "running (`ray status`)? Give its --address, or none to work on this machine alone."
            ) from error

    def _require_connected(self) -> None:
        """Refuse a process that somebody has connected to another cluster."""
        there = self._ray.get_runtime_context().gcs_address
        if self.address not in (None, "auto", there):
            raise AnamorphError(
                f"This process is connected to the Ray cluster {there}, and the address that is "
                f"given is {self.address}. Leave the address out, or call ray.shutdown() first."
            )

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        if not self._users and self._ours:
            self._ray.shutdown()
            self._ours = False
            _silenced(self._said)
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
        refs: dict[str, Any] = {}
        for node, (answer, ref) in begun.items():
            try:
                found: Answer = self._ray.get(answer)
            except self._ray.exceptions.RayError:  # the node is gone
                continue
            if found.lasting:
                raise Lasting(found.error)
            if found.value:
                refs[node] = ref
        ours = None if refs.keys() == begun.keys() else self.share(value).ref
        return _OnNodes(refs, ours)

    def carry(
        self, step: str, jobs: Sequence[Job], watch: Watch
    ) -> Iterator[tuple[Job, Any | Failed]]:
        """See `Engine.carry`; a job that fails is tried again, up to five times in all."""
        return Dispatch(self._ray, step, jobs, watch, self.patience).results()


def _said_nothing(*_: object, **__: object) -> None:
    return None


def _silenced(say: Callable[..., None]) -> Callable[..., None]:
    """Have Ray say by `say` what becomes of its nodes; gives how it did so far.

    It would print pages of it to standard output, where programs read tables and JSON, whatever it
    is asked for. Progress tells of tries that failed, and of nodes.
    """
    from ray._private import worker

    before: Callable[..., None] = vars(worker).get("print_to_stdstream", _said_nothing)
    vars(worker)["print_to_stdstream"] = say
    return before


def _require_reached(address: str | None) -> None:
    """Find out in seconds whether anybody listens at an address; Ray itself would wait for long.

    Raises:
        OSError: if nobody does.
    """
    host, _, port = (address or "").rpartition(":")
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
        ours: for the others; None if they have one.
    """

    def __init__(self, refs: Mapping[str, Any], ours: Any | None) -> None:
        self.refs, self.ours = dict(refs), ours

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _OnNodes) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((*self.refs.values(), self.ours))

    def get(self) -> _T:
        """The object of this node, or of another if this one came later."""
        import ray

        own = self.refs.get(ray.get_runtime_context().get_node_id())
        others = random.sample(list(self.refs.values()), len(self.refs))
        *most, last = [ref for ref in (own, self.ours, *others) if ref is not None]
        for ref in most:
            try:
                return _unpacked(_InStore(ref))  # type: ignore[no-any-return]
            except ray.exceptions.RayError:  # its node is gone
                continue
        return _unpacked(_InStore(last))  # type: ignore[no-any-return]


@lru_cache(maxsize=HELD)
def _unpacked(shared: _InStore[Any]) -> Any:
    import ray

    packed: Packed = ray.get(shared.ref)
    return unpack(packed)


def _made(make: Callable[[], Any]) -> tuple[Answer, Packed | None]:
    """An object that a node makes for itself, packed, and before it whether it could."""
    import ray

    answer = carried(make, 1, versions())
    packed = None if answer.value is None else pack(answer.value, ray.cloudpickle.CloudPickler)
    return answer._replace(value=packed is not None), packed
