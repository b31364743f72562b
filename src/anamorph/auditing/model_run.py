"""A batch with its scored positions, and what a model makes of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anamorph.faithfulness.comparison import model_output
from anamorph.faithfulness.divergences import Candidates
from anamorph.faithfulness.model_output import ModelOutput
from anamorph.faithfulness.sums import SumIndex
from anamorph.models.base import Batch, Model, Recorded, State
from anamorph.models.sites import Site
from anamorph.tasks import Split
from anamorph.tasks.batches import Targets, collate, targets

Head = tuple[int, int]  # layer, head


@dataclass(frozen=True)
class ScoredBatch:
    """Sequences, and the positions that count in them.

    Attributes:
        batch: the sequences, without what no prediction depends on.
        targets: their scored positions.
        places: [scored position] those of the targets that are valid, counted over the batch.
        rows: where the sums of a cell take in these positions, on the host; see `SumIndex.rows_at`.
    """

    batch: Batch
    targets: Targets
    places: Tensor
    rows: Tensor

    @classmethod
    def of(
        cls, split: Split, index: SumIndex, sequences: NDArray[np.int64], model: Model
    ) -> "ScoredBatch":
        """Of some sequences of a split, on the model's device."""
        wanted = targets(split, sequences)
        batch = collate(split, sequences)
        if model.causal:  # nothing behind the last prediction has a say in it
            needed = int(wanted.at.max()) + 1
            batch = Batch(batch.tokens[:, :needed], batch.mask[:, :needed])
        places = wanted.valid.flatten().nonzero()[:, 0]
        rows = index.rows_at(wanted.number[wanted.valid])  # no other batch has its sequences
        return cls(batch, wanted, places, rows).to(model.device)

    def to(self, device: torch.device) -> "ScoredBatch":
        """The same on another device."""
        parts = self.batch.to(device), self.targets.to(device)
        return ScoredBatch(*parts, self.places.to(device), self.rows)


@dataclass(frozen=True)
class Outcome:
    """What a model, or several proxies as its copies, make of a batch.

    Attributes:
        model: whose state it is.
        state: after the last layer, at the targets.
        patterns: attention of the compared heads, at the targets; `[1, ...]` where no copy differs.
    """

    model: Model
    state: State
    patterns: Recorded

    def logits(self, places: Tensor) -> Tensor:
        """[1 or copy, place, vocabulary] at some targets, counted over the batch."""
        places = places.to(self.state.residual.device)
        state = self.state.each(lambda x: x.flatten(1, 2).index_select(1, places)[:, None])
        return self.model.logits(state)[:, 0]

    def attention(self, heads: Iterable[Head], places: Tensor) -> Tensor:
        """[1 or copy, head, place, key] of some heads, at some targets."""
        # index_select copies whole rows: several times faster than a Boolean mask
        places = places.to(self.model.device)
        picked = [
            self.patterns[site].flatten(1, 2).index_select(1, places) for site in patterns_of(heads)
        ]
        copies = max(len(pattern) for pattern in picked)  # one as long as no proxy has changed it
        return torch.stack([pattern.expand(copies, -1, -1) for pattern in picked], dim=1)


@dataclass(frozen=True)
class ModelRun:
    """What the model itself makes of a batch.

    Attributes:
        scored: the batch.
        states: the state before each layer, and after the last.
        outcome: what came out.
        output: what the model predicts at the batch's places, in their order.
    """

    scored: ScoredBatch
    states: Sequence[State]
    outcome: Outcome
    output: ModelOutput

    @property
    def model(self) -> Model:
        """The model itself."""
        return self.outcome.model

    @property
    def on_host(self) -> bool:
        """Whether the model computes where Python does, so that nothing waits for it."""
        return self.model.device.type == "cpu"

    @classmethod
    def of(
        cls, model: Model, scored: ScoredBatch, heads: Iterable[Head], candidates: Candidates
    ) -> "ModelRun":
        """Run the model, and keep what proxies start from and are compared with.

        Args:
            model: in inference mode.
            scored: what to run it on.
            heads: whose attention to keep.
            candidates: among which a prediction is chosen.
        """
        record, patterns = patterns_of(heads), Recorded()
        states = [model.start(scored.batch)]
        for layer in range(model.layers):
            state, found = model.layer(layer, states[-1], record=record, at=scored.targets.at)
            states.append(state)
            patterns |= found
        outcome = Outcome(model, states[-1], patterns)
        tokens = scored.targets.token.flatten()[scored.places]
        output = model_output(outcome.logits(scored.places)[0], tokens, candidates)
        return cls(scored, states, outcome, output)


def patterns_of(heads: Iterable[Head]) -> list[Site]:
    """The sites of heads' attention."""
    return [Site(layer, head, "pattern") for layer, head in heads]
