"""Fits by a streamed optimisation, such as stochastic gradient descent: one pass, with a seed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.machine.threads import torch_threads
from anamorph.simplifications.base import Simplification


class Streamed(Simplification):
    """A simplification that learns from batches of points as they come, such as an autoencoder.

    A subclass defines `begin`, `step` and `end`, `__call__`, and two hyper-parameters. Of a
    replacement (`class Mine(Streamed, Replacement)`) the points hold what it reads and writes.

    Attributes:
        seed: of the random numbers that `begin` is given.
        batch: the number of points of a step.
        threads: how many may run side by side in a step, in which torch itself has one; this is no
            hyper-parameter, and must not change numbers.
    """

    seed: int
    batch: int
    threads: int = 1

    @abstractmethod
    def begin(self, dims: Sequence[int], random: torch.Generator) -> None:
        """Make ready to learn; what is needed until the end has names that begin with `_`.

        Args:
            dims: the width of the points; of a replacement those of what is read, then of what is
                written.
            random: on the CPU, with the seed; all random numbers must come from it, those of the
                steps too.
        """

    @abstractmethod
    def step(self, points: Tensor) -> None:
        """Learn from `points` [batch, dim] in the stream's order, with gradients switched on.

        The last batch may be smaller. Points are in the model's dtype, on its device.
        """

    @abstractmethod
    def end(self) -> None:
        """Set the learnt attributes, tensors of any dtype, on any device."""

    def validate(self, dim: int | None = None) -> None:
        """See `Simplification.validate`."""
        self.require_whole("seed", least=0)
        self.require_whole("batch", least=1)

    def statistic(self, *dims: int) -> Steps:
        """The optimisation; it is shared with nothing else."""
        self.validate()
        return Steps(self.clone(), dims)

    def learn(self, statistic: Steps) -> Self:
        """Take over what the optimisation has come to."""
        return self.load_state(statistic.finish())


class Steps:
    """A statistic of points that is the state of an optimisation: it steps as batches fill up.

    Steps depend on the points and their order, never on how they were cut into updates.

    Attributes:
        threads: how many the learner has; None for as many as torch has.
    """

    def __init__(self, learner: Streamed, dims: Sequence[int]) -> None:
        self.learner, self.dims = learner, dims
        self.threads: int | None = None
        self._rest: list[Tensor] = []  # fewer points than a batch
        self._begun = self._ended = False

    @property
    def key(self) -> Hashable:
        """Only an equal simplification learns the same."""
        return ("steps", self.learner)

    def update(self, x: Tensor) -> None:
        """Take in `x` [points, dim]."""
        with self._learning():
            # A copy, as gradients cannot flow through tensors of inference mode.
            waiting = torch.cat([*self._rest, x.detach().clone()])
            while len(waiting) >= self.learner.batch:
                self._step(waiting[: self.learner.batch])
                waiting = waiting[self.learner.batch :]
            self._rest = [waiting]

    def finish(self) -> dict[str, Tensor]:
        """What was learnt, on the CPU; no more points can be taken in afterwards.

        Raises:
            AnamorphError: if no point was seen.
        """
        if not self._ended:
            if not self._begun and not any(map(len, self._rest)):
                raise AnamorphError(f"{self.learner}: there are no points to fit to; give some.")
            with self._learning():
                for points in self._rest:
                    if len(points):
                        self._step(points)
                self.learner.end()
            self._ended = True
        learnt = self.learner.state_dict()  # in the layout of a file, on which rounding depends
        return {name: x.detach().cpu().contiguous() for name, x in learnt.items()}

    @contextmanager
    def _learning(self) -> Iterator[None]:
        with torch_threads(1) as before, torch.inference_mode(False), torch.enable_grad():
            self.learner.threads = self.threads or before
            yield

    def _step(self, points: Tensor) -> None:
        if not self._begun:
            self.learner.begin(self.dims, torch.Generator().manual_seed(self.learner.seed))
            self._begun = True
        self.learner.step(points)
