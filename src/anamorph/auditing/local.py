"""Who carries out the jobs of a study: an engine. The one here is this process.

A job is a call that can be made anywhere: what it needs comes with it, as arguments or as shared
objects, and what it makes is what it returns. So results do not depend on who carries it out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from anamorph.errors import AnamorphError
from anamorph.machine.threads import torch_threads
from anamorph.progress import Event, Watch

_T = TypeVar("_T")

TRIES = 5
"""How often a job is tried before it counts as failed."""


class Lasting(AnamorphError):
    """What would stop every job, on every try: the whole study ends with it."""


class Shared(ABC, Generic[_T]):
    """An object that many jobs need; it travels as a name."""

    @abstractmethod
    def get(self) -> _T:
        """The object, in whichever process."""


@dataclass(frozen=True)
class Needs:
    """What a job needs of a machine while it is carried out.

    Attributes:
        threads: of torch.
        accelerator: the share of a GPU; 0 for none.
        memory: bytes, beside what is shared; 0 where it is not known.
    """

    threads: int = 1
    accelerator: float = 0.0
    memory: int = 0


@dataclass(frozen=True)
class Job:
    """A call to be made.

    Attributes:
        name: what it makes, in words or as a file's name; no other job has it.
        call: can be pickled, such as a `functools.partial` of a function of this package.
        needs: of a machine.
        twice: whether it may be under way twice at a time, where it takes long.
    """

    name: str
    call: Callable[[], Any]
    needs: Needs = Needs()
    twice: bool = True


class Failed(NamedTuple):
    """A job that nobody could carry out.

    Attributes:
        job: its name.
        reasons: of every try, the last one last.
    """

    job: str
    reasons: list[str]


class Engine(ABC):
    """Who carries out jobs.

    Use it as a context: what it holds is let go of at the end.
    """

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    @abstractmethod
    def share(self, value: _T) -> Shared[_T]:
        """Make an object known to all jobs; it must not be changed afterwards."""

    def share_made(self, make: Callable[[], _T | None], value: _T) -> Shared[_T]:
        """Make an object known that every machine may make for itself, such as a model of a file.

        Args:
            make: can be pickled; None if it cannot be made where it is called, as a file is
                missing. Then it comes from here.
            value: what it makes here.

        Raises:
            Lasting: if a machine says so: it makes another one.
        """
        return self.share(value)

    @abstractmethod
    def carry(
        self, step: str, jobs: Sequence[Job], watch: Watch
    ) -> Iterator[tuple[Job, Any | Failed]]:
        """Carry out jobs, in any order.

        Args:
            step: what they are together, for whoever watches.
            jobs: none depends on another.
            watch: told how many are done.

        Yields:
            every job once, with what it returned.

        Raises:
            Lasting: if no job could be carried out.
        """


@dataclass(frozen=True, eq=False)
class Here(Shared[_T]):
    """An object of this process."""

    value: _T

    def get(self) -> _T:
        """The object itself."""
        return self.value


class Local(Engine):
    """This process: one job after the other, each tried once. What a job raises is raised."""

    def share(self, value: _T) -> Shared[_T]:
        """The object itself."""
        return Here(value)

    def carry(self, step: str, jobs: Sequence[Job], watch: Watch) -> Iterator[tuple[Job, Any]]:
        """See `Engine.carry`."""
        for done, job in enumerate(jobs):
            watch(Event(step, done, len(jobs)))
            with torch_threads(job.needs.threads):
                result = job.call()
            yield job, result
        watch(Event(step, len(jobs), len(jobs)))
