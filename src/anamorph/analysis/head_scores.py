"""What each attention head looks like in the model itself."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from anamorph.analysis.heads import SCORES
from anamorph.auditing.samples import scored_sequences
from anamorph.auditing.sizes import BATCH_TOKENS
from anamorph.errors import AnamorphError
from anamorph.faithfulness.divergences import jensen_shannon
from anamorph.machine.threads import side_by_side, torch_threads
from anamorph.models.base import Batch, LayerKind, Model
from anamorph.tasks import Split
from anamorph.tasks.batches import collate, plan

SEQUENCES = 64  # that scores look at
LONGEST = 256  # tokens of a sequence that they look at


@torch.inference_mode()
def head_scores(
    model: Model,
    split: Split,
    *,
    sequences: int = SEQUENCES,
    batch_tokens: int = BATCH_TOKENS,
) -> pl.DataFrame:
    """What the model's own attention patterns look like, head by head.

    All scores lie in [0, 1] and are means over the first 256 tokens of a few sequences:

    *previous_token*: the attention from a position to the one before it, over all positions but the
    first of a sequence.

    *induction*: the attention from a position to the tokens that followed earlier occurrences of
    its token; over the positions that have such a token before them. It is the prefix-matching
    score of Olsson et al. (2022), "In-context Learning and Induction Heads", taken on the data
    instead of on repeated random tokens.

    *copying*: the attention from a position to the tokens, up to itself, that are the same as the
    one that comes next; over the positions where there is such a token. What a head attends to so
    could be copied to predict the next token.

    *positional*: 1 minus the Jensen-Shannon divergence, in bits, between the patterns of two
    sequences at the same position; over all positions but the first, of sequences paired at random
    but for their length. It is 1 for a head whose pattern does not depend on the tokens. For heads
    that attend to one token it is the share of pairs of which both attend to the same place; a
    broad pattern scores high, too.

    Args:
        model: in inference mode.
        split: sequences without a scored position are left out.
        sequences: the first so many; an odd one is dropped.
        batch_tokens: tokens a batch, padding included; numbers differ by rounding alone.

    Returns:
        layer, head, the scores (null where no position has one) and sequences; the row
        without layer and head has the scores of attention that is spread evenly. Empty if the model
        has no patterns, or the split fewer than two sequences.

    Raises:
        AnamorphError: if a score is not finite.
    """
    heads = len({site.head for site in model.sites if site.kind == "pattern"})
    layers = sorted({site.layer for site in model.sites if site.kind == "pattern"})
    some = scored_sequences(split, sequences)
    lengths = np.minimum(some.lengths, LONGEST)
    pairs = np.argsort(lengths, kind="stable")[len(some) % 2 :].reshape(-1, 2)
    rows = [(layer, head) for layer in layers for head in range(heads)]
    sums = torch.zeros(len(rows) + 1, len(SCORES), dtype=torch.float64)
    counts = torch.zeros(len(SCORES), dtype=torch.float64)
    counted_on = torch.device("cpu") if model.device.type == "mps" else model.device

    @torch.inference_mode()
    def score(part: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """[row, score] sums of some pairs, and [score] how many positions count."""
        whole = collate(some, pairs[part].ravel())
        batch = Batch(whole.tokens[:, :LONGEST], whole.mask[:, :LONGEST])
        places = Places.of(batch.to(counted_on))
        found = []
        state = model.start(batch.to(model.device))
        for layer in range(max(layers, default=-1) + 1):
            record = [LayerKind(layer, "pattern")] if layer in layers else []
            state, recorded = model.layer(layer, state, record=record)
            for pattern in recorded.values():
                found.append(places.sums(places.moved(pattern[0].to(counted_on))))
        found.append(places.sums(places.evenly(model.causal)))
        return torch.cat(found).cpu(), places.counts().cpu()

    batches = plan(2 * lengths[pairs].max(1, initial=0), batch_tokens)
    with model.session(), torch_threads(1) as threads:
        workers = threads if model.parallel and model.device.type == "cpu" else 1
        for more, counted in side_by_side(score, batches, workers):
            sums += more
            counts += counted
    for (layer, head), total in zip(rows, sums, strict=False):
        if not bool(total.isfinite().all()):
            raise AnamorphError(
                f"The attention of {layer}.{head} on split {split.name!r} is not a number "
                "somewhere; the model is broken, or its number format too narrow."
            )
    means = (sums / counts).numpy()
    frame = pl.DataFrame(
        {
            "layer": pl.Series([*(layer for layer, _ in rows), None], dtype=pl.Int64),
            "head": pl.Series([*(head for _, head in rows), None], dtype=pl.Int64),
            **{name: means[:, i] for i, name in enumerate(SCORES)},
            "sequences": pl.Series([pairs.size] * len(means), dtype=pl.Int64),
        }
    ).with_columns(pl.col(*SCORES).fill_nan(None))
    return frame if rows and pairs.size else frame.clear()


@dataclass(frozen=True)
class Places:
    """Which attention of a batch counts for which score; every two rows of it are a pair.

    Attributes:
        shift: None, or [batch, position] where each position of left-padded sequences stands.
        mask: [batch, position] True at real tokens, counted from a sequence's beginning.
        follows: [batch, query, key] True at keys before the query whose token followed the query's.
        comes: [batch, query, key] True at keys up to the query whose token comes next.
    """

    shift: Tensor | None
    mask: Tensor
    follows: Tensor
    comes: Tensor

    @classmethod
    def of(cls, batch: Batch) -> "Places":
        """Of a batch that is padded on either side."""
        tokens, mask, shift = batch.tokens, batch.mask, None
        if not bool(mask[:, 0].all()):
            length = mask.shape[1]
            first = mask.int().argmax(1, keepdim=True)
            shift = (torch.arange(length, device=mask.device) + first) % length
            tokens, mask = tokens.gather(1, shift), mask.gather(1, shift)
        before = torch.ones_like(mask[0]).expand(mask.shape[1], -1).tril(-1)  # [query, key]
        same = tokens[:, :, None] == tokens.roll(1, 1)[:, None]
        follows = same & before & mask[:, :, None]
        follows[:, :, 0] = False  # nothing stands before the first token
        upto = torch.ones_like(before).tril()
        following = tokens.roll(-1, 1)[:, :, None] == tokens[:, None]
        comes = following & upto & mask.roll(-1, 1)[:, :, None]
        comes[:, -1] = False  # nothing stands behind the last
        return cls(shift, mask, follows, comes)

    def evenly(self, causal: bool) -> Tensor:
        """[batch, 1, query, key] attention spread evenly over what can be seen."""
        seen = self.mask[:, None].expand_as(self.follows)
        if causal:
            seen = seen.tril()
        pattern = seen.float() / seen.sum(-1, keepdim=True).clamp(min=1)
        return pattern[:, None]

    def moved(self, pattern: Tensor) -> Tensor:
        """A pattern [batch, head, query, key] as if padding stood at the right."""
        if self.shift is not None:
            for dim, index in ((2, self.shift[:, None, :, None]), (3, self.shift[:, None, None])):
                pattern = pattern.gather(dim, index.expand_as(pattern))
        return pattern

    def counts(self) -> Tensor:
        """[score] the positions, for `positional` pairs of positions, that count."""
        some = (self.follows.any(-1), self.comes.any(-1))
        counted = (self.mask[:, 1:], *some, self._both())
        return torch.stack([x.sum() for x in counted])

    def sums(self, pattern: Tensor) -> Tensor:
        """[head, score] summed over what counts, of a moved pattern [batch, head, query, key]."""
        pattern = pattern.float()
        previous = pattern.diagonal(-1, 2, 3).masked_fill(~self.mask[:, None, 1:], 0)
        induction = pattern.masked_fill(~self.follows[:, None], 0)
        copying = pattern.masked_fill(~self.comes[:, None], 0)
        # What a sink without a value takes is a place to attend to, too.
        whole = torch.cat([pattern, (1 - pattern.sum(-1, keepdim=True)).clamp(min=0)], dim=-1)
        alike = 1 - jensen_shannon(whole[0::2], whole[1::2])  # [pair, head, query]
        alike = alike[..., 1:].masked_fill(~self._both()[:, None], 0)
        return torch.stack(
            [
                previous.sum((0, 2), dtype=torch.float64),
                induction.sum((0, 2, 3), dtype=torch.float64),
                copying.sum((0, 2, 3), dtype=torch.float64),
                alike.sum((0, 2), dtype=torch.float64),
            ],
            dim=1,
        )

    def _both(self) -> Tensor:
        """[pair, position - 1] whether both sequences of a pair have a token there."""
        return self.mask[0::2, 1:] & self.mask[1::2, 1:]
