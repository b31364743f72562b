"""What the report draws beside the numbers: attended depth, keys and queries, attention maps.

These look at a few sequences of each split, and at the proxies that a researcher would pick: of
each family the smallest that looks faithful on the reference.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from anamorph.analysis.words import families, views_of
from anamorph.analysis.worst import Chosen, worst
from anamorph.auditing.changed import in_place
from anamorph.auditing.samples import fit_data, scored_sequences
from anamorph.auditing.sizes import BATCH_TOKENS
from anamorph.files import write_table
from anamorph.models.base import Batch, LayerKind
from anamorph.models.decoder import Decoder
from anamorph.runs.folder import PICTURES, Run
from anamorph.simplifications import SVD, FittedProxies, FittedProxy, Simplified, expand, fit
from anamorph.tasks import NOT_APPLICABLE, Split, Task
from anamorph.tasks.batches import Targets, collate, even_batches, targets

ATTENDED = 100  # sequences a split for attended depth
SCATTERED = 12  # sequences a split whose keys and queries are drawn
ASKED = 400  # sequences a split for whether a head attends the match
MAPPED = 2  # sentences a split whose attention is drawn
LONGEST_MAP = 40  # tokens
MOST_PROXIES = 6
NONE = "–"  # the level of a token that a facet says nothing about


def write(run: Run, task: Task, fit_sequences: int, device: torch.device) -> None:
    """Write the tables of every seed of a run, into `views/`.

    Args:
        run: with its results; of its proxies the views are shown, not their controls.
        task: with what is scored (`scored_task`).
        fit_sequences: of the training split, at most.
        device: where the models compute.
    """
    results = views_of(run.results)
    if whole := [str(proxy) for proxy in expand(run.spec["simplify"])]:  # not single heads, then
        results = results.filter(pl.col("simplification").is_in([*whole, "identity"]))
    telling = telling_proxies(results, run.spec["audit"]["thresholds"]["faithful"])
    for seed in run.spec["seeds"]:
        folder = run.seed(seed) / "views"
        if (folder / "sentences.parquet").exists():  # written last
            continue
        model = Decoder.load(run.model(seed)).eval().to(device)
        if task.about.matched is not None:
            found = matching(model, task, task.about.matched)
            found = found.select(pl.lit(seed, pl.Int64).alias("seed"), pl.all())
            write_table(run.seed(seed) / "matching.parquet", found)
        fitted = FittedProxies.load(run.seed(seed) / "simplifications.safetensors")
        chosen = [fitted[p] for p in fitted if str(p) in telling]
        write_table(folder / "attended.parquet", attended(model, task, chosen))
        write_table(folder / "scatter.parquet", scatter(model, task, fit_sequences))
        names = [str(f.proxy) for f in chosen if f.proxy.attachments]
        parted = worst_sentences(run, task, seed, names)
        write_table(folder / "patterns.parquet", patterns(model, task, chosen, parted))
        write_table(folder / "sentences.parquet", sentences(task, parted))


def telling_proxies(results: pl.DataFrame, looks_right: float = 0.9) -> list[str]:
    """The identity, and of each family (method and sites) its smallest member that looks faithful.

    A family without such a member is shown by its largest.
    """
    pooled = results.filter(pl.col("facet").is_null(), pl.col("seed").is_null())
    chosen = []
    for family in families(pooled.filter(role="iid", metric="same_prediction")):
        right = family.filter(pl.col("value") >= looks_right)
        chosen.append((right.head(1) if len(right) else family.tail(1)).row(0, named=True))
    chosen.sort(key=lambda row: row["method"] != "identity")
    return [row["simplification"] for row in chosen][: MOST_PROXIES + 1]


@torch.inference_mode()
def proxy_patterns(
    model: Decoder, fitted: FittedProxy, batch: Batch, at: Tensor | None = None
) -> list[Tensor]:
    """[batch, head, query, key] attention of each layer, at positions `at` or all, on the host."""
    record = [LayerKind(layer, "pattern") for layer in range(model.layers)]
    batch, at = batch.to(model.device), None if at is None else at.to(model.device)
    with in_place(model, fitted) as edits:
        recorded = model.run(batch, edits, record, at).recorded
    return [recorded[key][0].cpu() for key in record]


def attended(model: Decoder, task: Task, proxies: Sequence[FittedProxy]) -> pl.DataFrame:
    """The matched facet of scored tokens against that of the tokens attended for them.

    Returns:
        simplification, split, layer, head, facet, true_level, attended_level, mass (attention,
        summed over scored positions) and argmax (scored positions at which this level has the most
        attended token); empty if the task has no facet to match.
    """
    matched = task.about.matched
    if matched is None:
        return pl.DataFrame()
    tables = []
    for split, fitted in product(task.evaluated, proxies):
        names = np.array([NONE, *split.facets[matched].names])
        part = scored_sequences(split, ATTENDED)
        counts = _attended_counts(model, part, fitted, matched)  # [2, layer, head, true, level]
        layer, head, true, level = np.nonzero(counts[0] > 0)
        mass, argmax = counts[:, layer, head, true, level]
        numbers = {"layer": layer, "head": head, "true_level": names[true]}
        numbers |= {"attended_level": names[level], "mass": mass, "argmax": argmax.astype(np.int64)}
        about = {"simplification": str(fitted.proxy), "split": split.name, "facet": matched}
        table = _of(pl.DataFrame(numbers), **about)
        tables.append(table.select(*PICTURES["attended"].split(), "argmax"))
    return pl.concat(tables) if tables else pl.DataFrame()


def _of(table: pl.DataFrame, **columns: str | int | None) -> pl.DataFrame:
    """The table with columns of one value each before its own."""
    return table.select(*(pl.lit(value).alias(name) for name, value in columns.items()), pl.all())


def _batches(split: Split, facet: str) -> Iterator[tuple[Batch, Targets, Tensor]]:
    """Batches, the scored positions, and [batch, position] the codes of a facet, padded with -1."""
    for some in even_batches(split, np.arange(len(split)), BATCH_TOKENS):
        index, mask = split.rectangle(some)
        codes = np.where(mask, split.facets[facet].codes[index], NOT_APPLICABLE)
        yield collate(split, some), targets(split, some), torch.from_numpy(codes.astype(np.int64))


def _attended_counts(
    model: Decoder, split: Split, fitted: FittedProxy, matched: str
) -> NDArray[np.float64]:
    """[mass or arg-max, layer, head, true level, attended level]; level 0 is “no level”."""
    levels = len(split.facets[matched].names) + 1
    total = torch.zeros(2, model.layers, model.config.heads, levels, levels, dtype=torch.float64)
    for batch, wanted, codes in _batches(split, matched):
        at_token = codes + 1
        of_key = torch.nn.functional.one_hot(at_token, levels).double()
        true = at_token.gather(1, wanted.at + 1)[wanted.valid]  # [scored]
        for layer, pattern in enumerate(proxy_patterns(model, fitted, batch, wanted.at)):
            mass = pattern.double() @ of_key[:, None]  # [batch, head, query, level]
            every = at_token[:, None, None].expand(*pattern.shape)
            top = every.gather(-1, pattern.argmax(-1, keepdim=True))[..., 0]
            argmax = torch.nn.functional.one_hot(top, levels).double()
            for number, values in enumerate((mass, argmax)):
                at_scored = values.transpose(1, 2)[wanted.valid]  # [scored, head, level]
                total[number, layer].transpose(0, 1).index_add_(0, true, at_scored)
    return total.numpy()


@torch.inference_mode()
def matching(model: Decoder, task: Task, matched: str) -> pl.DataFrame:
    """How often every head of the model looks most at the match of what is to be predicted.

    The match of a scored token is the last one before it on the same level of the facet `matched`:
    where this is the depth of brackets, the opener of a closer, as those of one depth open and
    close in turn.

    Returns:
        layer, head, split, value (share of scored positions whose most attended token is their
        match) and positions (those scored tokens that have one).
    """
    identity = FittedProxy(Simplified(()), {}, model.layers)
    tables = []
    for split in task.evaluated:
        hits = torch.zeros(model.layers, model.config.heads, dtype=torch.int64)
        positions = 0
        for batch, wanted, level in _batches(scored_sequences(split, ASKED), matched):
            place = torch.arange(level.shape[1])
            own = level.gather(1, wanted.at + 1)[..., None]  # [batch, query, 1]
            alike = (place <= wanted.at[..., None]) & (level[:, None] == own) & (own >= 0)
            match = torch.where(alike, place, -1).amax(-1)  # [batch, query]
            known = wanted.valid & (match >= 0)
            positions += int(known.sum())
            for layer, pattern in enumerate(proxy_patterns(model, identity, batch, wanted.at)):
                right = pattern.argmax(-1) == match[:, None]  # [batch, head, query]
                hits[layer] += (right & known[:, None]).sum((0, 2))
        layers, heads = np.indices(hits.shape).reshape(2, -1)
        tables.append(
            pl.DataFrame({"layer": layers, "head": heads}).with_columns(
                split=pl.lit(split.name),
                value=pl.Series(hits.flatten().numpy() / max(positions, 1)),
                positions=pl.lit(positions, pl.Int64),
            )
        )
    return pl.concat(tables)


@torch.inference_mode()
def scatter(model: Decoder, task: Task, fit_sequences: int) -> pl.DataFrame:
    """Keys and queries of a few sequences on the first two singular directions of their site.

    Returns:
        layer, head, kind, split, sequence, position, token, a column for each facet, component_1
        and component_2.
    """
    proxy = Simplified((SVD(rank=min(2, model.dim("key") or 2)) @ "*.*.{query,key}",))
    directions = fit(model, [proxy], fit_data(task, fit_sequences), task.train.name)[proxy].by_site
    tables = []
    for split in task.evaluated:
        part = scored_sequences(split, SCATTERED)
        record = {LayerKind(site.layer, site.kind) for site in directions}
        batch = collate(part, np.arange(len(part)))
        recorded = model.run(batch.to(model.device), record=record).recorded
        labels = _labels(part, task)
        for site, simplification in directions.items():
            whole = recorded[LayerKind(site.layer, site.kind)].cpu()
            points = whole[0, :, site.head][batch.mask].double()  # [tokens, dim]
            place = points @ simplification.components_.T
            table = labels.with_columns(
                component_1=pl.Series(place[:, 0].numpy()),
                component_2=pl.Series(place[:, -1].numpy()),
            )
            tables.append(_of(table, **site._asdict()))
    return pl.concat(tables)


def _labels(split: Split, task: Task) -> pl.DataFrame:
    """split, sequence, position, token and every facet of all tokens of a split.

    A facet named `position` is left out, as the exact position is there.
    """
    columns = {
        "split": [split.name] * len(split.tokens),
        "sequence": split.owner,
        "position": split.position,
        "token": [task.vocabulary[t] for t in split.tokens.tolist()],
    }
    texts = [
        pl.Series(name, [None if c == NOT_APPLICABLE else facet.names[c] for c in facet.codes])
        for name, facet in split.facets.items()
        if name not in columns  # the position itself says more than its bin
    ]
    return pl.DataFrame(columns).with_columns(text.cast(pl.String) for text in texts)


def worst_sentences(run: Run, task: Task, seed: int, proxies: Sequence[str]) -> dict[str, int]:
    """Of every split the short sequence on which some proxies part most from the model.

    Args:
        run: with its works.
        task: with what is scored.
        seed: of the model.
        proxies: spec strings; the mean of their `output_jsd` decides.

    Returns:
        the number of the sequence by the name of its split, where there is a short one.
    """
    found = {}
    for split in task.evaluated if proxies else ():
        cells = [worst(run, Chosen(name, split.name, seed), None) for name in proxies]
        short = pl.concat(cells).filter(pl.col("length") <= LONGEST_MAP)
        means = short.group_by("sequence").agg(pl.col("value").mean())
        ranked = means.sort("value", "sequence", descending=[True, False])["sequence"]
        if len(ranked):
            counts = np.add.reduceat(split.scored.astype(np.int64), split.offsets[:-1])
            found[split.name] = int(np.flatnonzero(counts)[ranked[0]])
    return found


def mapped_sentences(split: Split, parted: int | None = None) -> NDArray[np.int64]:
    """The short sequences with the most scored positions; if too few are short, the shortest.

    The second is the one on which proxies part most from the model, if one is given.
    """
    scored = np.add.reduceat(split.scored.astype(np.int64), split.offsets[:-1])
    short = np.flatnonzero(split.lengths <= LONGEST_MAP)
    mapped = np.argsort(split.lengths, kind="stable")[:1]
    if len(short) >= MAPPED:
        mapped = short[np.argsort(-scored[short], kind="stable")[:MAPPED]]
    if parted is not None and parted not in mapped:
        mapped = np.insert(mapped, 1, parted)
    return mapped


def patterns(
    model: Decoder,
    task: Task,
    proxies: Sequence[FittedProxy],
    parted: Mapping[str, int] | None = None,
) -> pl.DataFrame:
    """Attention maps: simplification, split, sequence, layer, head, query, key, weight.

    Args:
        model: whose attention.
        task: whose sentences (`mapped_sentences`).
        proxies: the identity is the model itself.
        parted: as `worst_sentences` gives it.
    """
    parted = parted or {}
    tables = []
    for split in task.evaluated:
        for number, sequence in enumerate(mapped_sentences(split, parted.get(split.name))):
            batch = collate(split, np.array([sequence]))
            for fitted in proxies:
                about = {"simplification": str(fitted.proxy), "split": split.name}
                for layer, pattern in enumerate(proxy_patterns(model, fitted, batch)):
                    places = np.nonzero(np.tril(np.ones(tuple(pattern.shape[1:]))))
                    columns = dict(zip(("head", "query", "key"), places, strict=True))
                    table = pl.DataFrame(columns | {"weight": pattern[0].numpy()[places]})
                    tables.append(_of(table, **about, sequence=number, layer=layer))
    return pl.concat(tables)


def sentences(task: Task, parted: Mapping[str, int] | None = None) -> pl.DataFrame:
    """The sentences of `patterns`: split, sequence, position, token, scored and worst.

    The arguments are as for `patterns`.
    """
    parted = parted or {}
    columns = ("split", "sequence", "position", "token")
    tables = []
    for split in task.evaluated:
        mapped = mapped_sentences(split, parted.get(split.name))
        part = split.take(mapped)
        is_worst = (mapped == parted.get(split.name, -1))[part.owner]
        table = _labels(part, task).select(columns)
        tables.append(table.with_columns(scored=part.scored, worst=is_worst))
    return pl.concat(tables)
