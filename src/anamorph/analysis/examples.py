"""What model and proxies predict where they part most: the texts of a run.

Of the most telling views and every split, the sequences that are the worst by `output_jsd` are run
once more, and this time everything is kept: both predictions of every token.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from anamorph.analysis.findings import Findings
from anamorph.analysis.pieces import Pieces
from anamorph.analysis.worst import Chosen, parting, worst
from anamorph.auditing.engine import LOGITS, batch_threads
from anamorph.auditing.model_run import ModelRun, ScoredBatch
from anamorph.auditing.proxies import Proxy
from anamorph.auditing.samples import scored_sequences
from anamorph.auditing.works import Auditor
from anamorph.faithfulness.comparison import position_metrics
from anamorph.faithfulness.divergences import Candidates
from anamorph.faithfulness.metrics import metric_names
from anamorph.faithfulness.sums import SumIndex
from anamorph.machine.threads import side_by_side
from anamorph.models.base import Model
from anamorph.tasks import Split
from anamorph.tasks.batches import even_batches

MOST_PROXIES = 6
MOST, FEWEST, SHARE = 20, 5, 40  # sequences of a cell: one of so many, within these bounds
FIRST = 20  # sequences of a split that are kept as they come, where tokens are characters
LONGEST = 512  # tokens of a sequence that are kept
TOP = 3  # predictions of each
BATCH_TOKENS = 1_024  # tokens a batch: every position has its logits
DIGITS = 5  # of probabilities

NUMBERS = ("output_jsd", "same_prediction", "model_accuracy", "proxy_accuracy")
RIGHT = {"same": NUMBERS[1], "model_right": NUMBERS[2], "proxy_right": NUMBERS[3]}
SCHEMA: dict[str, Any] = {
    "length": pl.Int64,
    "start": pl.Int64,
    "separate": pl.Boolean,
    "token": pl.List(pl.String),
    "scored": pl.List(pl.Boolean),
    "jsd": pl.List(pl.Float32),
    **dict.fromkeys(RIGHT, pl.List(pl.Boolean)),
    **dict.fromkeys(("model", "proxy"), pl.List(pl.List(pl.String))),
    **dict.fromkeys(("model_p", "proxy_p"), pl.List(pl.List(pl.Float32))),
}


@dataclass(frozen=True)
class Predicted:
    """What model and proxy predict at the scored positions of a split, in their order.

    Attributes:
        numbers: by the names in `NUMBERS`, each [position].
        tokens: [2, position, top] the likeliest tokens of the model and of the proxy.
        shares: [2, position, top] their probabilities.
    """

    numbers: dict[str, NDArray[np.float32]]
    tokens: NDArray[np.int64]
    shares: NDArray[np.float32]


def examples(run: Findings, auditor: Auditor, seed: int) -> pl.DataFrame:
    """The worst sequences of every split and of the most telling proxies, with all predictions.

    Args:
        run: with the works and tables of the audit.
        auditor: who made them.
        seed: of its model.

    Returns:
        a row a proxy, split and sequence: `simplification`, `split`, `sequence` (as
        `anamorph.analysis.worst.worst` names it), `rank` (0 is the worst; null for one that is kept
        as it comes), `number`, `id`, `value` (the mean `output_jsd`) and `same_prediction` (as
        there), `length` in tokens, `start` (the first token that is kept, as a long sequence is
        cut around its worst position), `separate` (whether tokens are shown with a space between
        them); and lists with an entry a token, for which see `anamorph.analysis.worst.positions`.
        Of tokens that are equally likely the lower id comes first.
    """
    pieces = Pieces.of(auditor.task.vocabulary)
    tables = []
    with auditor.model.session():
        for name in parting(run)[:MOST_PROXIES]:
            (proxy,) = auditor.proxies([name])
            parallel = auditor.model.parallel and proxy.parallel
            threads = batch_threads(auditor.model, parallel, auditor.settings)
            with proxy.session(), threads as workers:
                for split in auditor.task.evaluated:
                    part = scored_sequences(split, auditor.sequences)
                    cell = Chosen(name, split.name, seed)
                    some = _sequences(run, cell, len(part), pieces)
                    chosen = part.take(some["sequence"].to_numpy())
                    texts = _texts(auditor, proxy, chosen, pieces, workers)
                    tables.append(some.hstack(texts))
    return pl.concat(tables) if tables else pl.DataFrame()


def _sequences(run: Findings, cell: Chosen, count: int, pieces: Pieces) -> pl.DataFrame:
    """Which sequences of a cell are kept, the worst first: of `examples` the first columns."""
    most = max(FEWEST, min(MOST, count // SHARE))
    first = FIRST if pieces.characters else 0
    ranked = worst(run, cell, None).with_row_index("rank")
    rank = pl.col("rank").cast(pl.Int64)
    some = ranked.filter((rank < most) | (pl.col("sequence") < first))
    return some.select(
        pl.lit(cell.proxy).alias("simplification"),
        pl.lit(cell.split).alias("split"),
        pl.col("sequence").cast(pl.Int64),
        pl.when(rank < most).then(rank).alias("rank"),
        "number",
        "id",
        "value",
        "same_prediction",
    )


def _texts(
    auditor: Auditor, proxy: Proxy, part: Split, pieces: Pieces, workers: int
) -> pl.DataFrame:
    """A row for each sequence: of `examples` the columns from `length` on."""
    told = _at_every_position(part)
    places = np.flatnonzero(told.scored)
    counted = part.scored[places]
    found = predictions(auditor.model, proxy, told, auditor.task.candidates, counted, workers)
    place_of = np.full(len(part.tokens), -1)
    place_of[places] = np.arange(len(places))
    names = {i: pieces.alone(i) for i in np.unique(found.tokens).tolist()}
    rows = []
    for start, stop in zip(part.offsets[:-1].tolist(), part.offsets[1:].tolist(), strict=True):
        own = place_of[start:stop]
        scored = part.scored[start:stop]
        divergence = np.where(own >= 0, found.numbers["output_jsd"][own], np.nan)
        window = _window(np.where(scored, divergence, -1))
        text = pieces.together(part.tokens[start:stop].tolist())
        row: dict[str, Any] = {
            "length": stop - start,
            "start": window.start,
            "separate": pieces.separate,
            "token": text[window],
            "scored": scored[window].tolist(),
            "jsd": [None if np.isnan(x) else x for x in divergence[window].tolist()],
        }
        for name, metric in RIGHT.items():
            values = found.numbers[metric][own] > 0.5
            counts = zip(values[window].tolist(), row["scored"], strict=True)
            row[name] = [value if counted else None for value, counted in counts]
        for who, name in enumerate(("model", "proxy")):
            best = [None if p < 0 else found.tokens[who, p].tolist() for p in own[window]]
            row[name] = [None if x is None else [names[i] for i in x] for x in best]
            shares = [None if p < 0 else found.shares[who, p].tolist() for p in own[window]]
            row[f"{name}_p"] = shares
        rows.append(row)
    return pl.DataFrame(rows, schema=SCHEMA)


def _at_every_position(split: Split) -> Split:
    """The split with everything scored that can be predicted; without facets."""
    scored = split.scored if split.masked is not None else split.position > 0
    return replace(split, scored=scored, facets={})


def _window(divergence: NDArray[np.float64]) -> slice:
    """Which tokens of a sequence are kept: all, or so many around the worst."""
    length = len(divergence)
    first = min(max(0, int(divergence.argmax()) - LONGEST // 2), max(0, length - LONGEST))
    return slice(first, min(length, first + LONGEST))


def predictions(
    model: Model,
    proxy: Proxy,
    split: Split,
    candidates: NDArray[np.int64],
    counted: NDArray[np.bool_],
    workers: int = 1,
) -> Predicted:
    """What model and proxy predict at the scored positions of all sequences of a split.

    Args:
        model: in inference mode.
        proxy: likewise, ready to run.
        split: of a few sequences.
        candidates: token ids among which a prediction is chosen.
        counted: [position] where that is so; elsewhere the likeliest of all tokens are told.
        workers: batches that run side by side.
    """
    index, among = SumIndex.of(split), Candidates.of(candidates, model.vocabulary, model.device)
    count, top = len(index.rows_of), min(TOP, len(candidates))
    names = metric_names(attention=False)
    kept = [names.index(name) for name in NUMBERS]
    numbers = np.empty((len(kept), count), np.float32)
    tokens, shares = np.empty((2, count, top), np.int64), np.empty((2, count, top), np.float32)

    @torch.inference_mode()
    def add(some: NDArray[np.int64]) -> None:
        scored = ScoredBatch.of(split, index, some, model)
        run = ModelRun.of(model, scored, proxy.heads, among)
        outcome = proxy.run(run, [proxy])
        places = scored.targets.number[scored.targets.valid].cpu().numpy()
        step = max(1, LOGITS // (4 * model.vocabulary))
        for rows in (slice(i, i + step) for i in range(0, len(places), step)):
            own = run.output[rows]
            theirs = outcome.logits(scored.places[rows])[0].to(own.logits.device)
            metrics = position_metrics(own, theirs[None])[0, kept]
            numbers[:, places[rows]] = metrics.cpu().numpy()
            for who, logits in enumerate((own.logits, theirs)):
                best = _likeliest(logits, among, top, torch.from_numpy(counted[places[rows]]))
                tokens[who, places[rows]], shares[who, places[rows]] = best

    parts = even_batches(split, np.arange(len(split)), BATCH_TOKENS, workers)
    for _ in side_by_side(add, parts, workers):
        pass
    return Predicted(dict(zip(NUMBERS, numbers, strict=True)), tokens, shares)


def _likeliest(
    logits: Tensor, among: Candidates, top: int, counted: Tensor
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """[place, top] token ids and their probabilities among all tokens.

    Args:
        logits: [place, vocabulary].
        among: the candidates.
        top: how many; there are at least as many candidates.
        counted: [place] where only candidates are told.
    """
    shares = logits.float().softmax(-1)
    others = torch.ones(among.vocabulary, dtype=torch.bool, device=logits.device)
    others[among.tokens] = False
    left_out = counted.to(logits.device)[:, None] & others
    best = shares.masked_fill(left_out, -1).topk(top)
    share, token = best.values.cpu().numpy(), best.indices.cpu().numpy()
    order = np.lexsort((token, -share))  # along each row
    token, share = (np.take_along_axis(x, order, -1) for x in (token, share.round(DIGITS)))
    return token, share
