"""The audit against a plain loop: every proxy a full forward pass, every metric at every position.

    python benchmarks/audit_dyck.py [--preset demo|paper] [--sequences N]

The plain loop is written without the engine, as one would in a notebook: explicit attention, the
model once a batch and then each proxy from the first layer on, metrics everywhere, and the scored
positions picked at the end. Both work on the same batches of the same splits with the same weights
(random ones, spread enough that proxies differ). The numbers are compared, and then the times.

Numbers are compared in float64: in float32 a query or a prediction may lie so close to the border
between two choices (clusters, most attended keys, tokens) that the order of a sum decides, and one
such position moves a mean over n positions by 1/n. The last column shows that difference, too.
"""

import argparse
import copy
import math
import time

import numpy as np
import torch
import torch.nn.functional as F

from anamorph.auditing.audit import with_identity
from anamorph.auditing.engine import audit_split
from anamorph.auditing.proxies import SimplifiedProxy
from anamorph.auditing.samples import fit_data, scored_sequences
from anamorph.auditing.sizes import BATCH_TOKENS
from anamorph.faithfulness.metrics import metric_names
from anamorph.faithfulness.sums import CellSums
from anamorph.models.decoder import Decoder
from anamorph.models.sites import Site
from anamorph.simplifications import FittedProxies, Simplified, fit
from anamorph.studies.specification import load_preset
from anamorph.tasks import Split, load_task
from anamorph.tasks.batches import collate, plan
from anamorph.training.train import default_model


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--preset", default="demo")
    arguments.add_argument("--sequences", type=int, help="a split; by default the preset's")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--model", help="a trained model.safetensors instead of random weights")
    arguments.add_argument("--no-loop", action="store_true", help="time the audit alone")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)

    spec = load_preset("dyck", options.preset)
    task = load_task(**spec.task)
    torch.manual_seed(0)
    model = Decoder(default_model(task, **spec.model))
    if options.model:
        model = Decoder.load(options.model)
    else:
        with torch.no_grad():
            for parameter in model.blocks.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(2.0)
    model.eval()
    double = copy.deepcopy(model).double()
    proxies = with_identity(spec.simplify)
    start = time.perf_counter()
    fitted = fit(model, proxies, fit_data(task, spec.audit.fit_sequences, proxies), task.train.name)
    print(f"{len(proxies)} proxies, fitted in {time.perf_counter() - start:.1f} s")

    total_audit = total_loop = 0.0
    columns = f"{'split':<22}{'tokens':>9}{'scored':>8}{'audit':>9}{'loop':>9}{'ratio':>7}"
    print(columns + "  difference in float64, float32")
    for split in task.evaluated:
        part = scored_sequences(split, options.sequences or spec.audit.sequences)
        candidates = torch.from_numpy(task.candidates)
        start = time.perf_counter()
        proxies = [SimplifiedProxy(x, model) for x in fitted.values()]
        cells = audit_split(model, part, task.candidates, proxies)
        audit_time = time.perf_counter() - start
        total_audit += audit_time
        line = f"{split.name:<22}{len(part.tokens):>9,}{part.scored.sum():>8,}{audit_time:>8.2f}s"
        if not options.no_loop:
            start = time.perf_counter()
            looped = plain_loop(model, part, candidates, fitted)
            loop_time = time.perf_counter() - start
            total_loop += loop_time
            rounded = difference(cells, looped, part)
            exact = difference(
                audit_split(
                    double,
                    part,
                    task.candidates,
                    [SimplifiedProxy(x, double) for x in fitted.values()],
                ),
                plain_loop(double, part, candidates, fitted),
                part,
            )
            line += f"{loop_time:>8.2f}s{loop_time / audit_time:>6.1f}x  {exact:.1e}, {rounded:.1e}"
            if exact > 1e-5:
                raise SystemExit(f"{line}\naudit and plain loop differ by {exact:.1e}")
        print(line, flush=True)
    print(f"audit {total_audit:.1f} s", end="")
    print("" if options.no_loop else f", loop {total_loop:.1f} s: {total_loop / total_audit:.1f}x")


def difference(
    cells: dict[Simplified, CellSums], looped: dict[Simplified, torch.Tensor], split: Split
) -> float:
    """The largest difference of a mean over the scored positions, over proxies and metrics."""
    whole = slice(len(split))  # the rows behind are those of the facets
    gaps = [(cells[p].sums[:, whole].sum(dim=1) - looped[p]).abs().max() for p in cells]
    return float(max(gaps)) / int(split.scored.sum())


@torch.inference_mode()
def plain_loop(
    model: Decoder, split: Split, candidates: torch.Tensor, fitted: FittedProxies
) -> dict[Simplified, torch.Tensor]:
    """[metric] sums over the scored positions of a split, for every proxy."""
    order = np.argsort(split.lengths, kind="stable")
    sums = {proxy: torch.zeros(len(metric_names()), dtype=torch.float64) for proxy in fitted}
    for part in plan(split.lengths[order], BATCH_TOKENS):
        sequences = order[part]
        batch = collate(split, sequences)
        mask = torch.zeros_like(batch.mask)
        for row, sequence in enumerate(sequences):
            start, stop = split.offsets[sequence : sequence + 2]
            mask[row, : stop - start] = torch.from_numpy(split.scored[start:stop])
        tokens, targets, scored = batch.tokens[:, :-1], batch.tokens[:, 1:], mask[:, 1:]
        model_logits, model_patterns = forward(model, tokens, {})
        for proxy, placed in fitted.items():
            logits, patterns = forward(model, tokens, placed.by_site)
            layers = {site.layer for site in placed.by_site} or range(model.layers)
            values = everywhere(
                model_logits,
                logits,
                torch.stack([model_patterns[i] for i in layers]),
                torch.stack([patterns[i] for i in layers]),
                targets,
                candidates,
            )
            sums[proxy] += values[:, scored].double().sum(dim=1)
    return sums


def forward(
    model: Decoder, tokens: torch.Tensor, edits: dict[Site, object]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits, and the [batch, query, key] pattern of every (one-headed) layer."""
    length, width = tokens.shape[1], model.config.width
    residual = model.embedding(tokens) + model.wave[:length]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    patterns = []
    for index, block in enumerate(model.blocks):

        def edited(kind: str, x: torch.Tensor, index: int = index) -> torch.Tensor:
            site = Site(index, 0, kind)
            return edits[site](x) if site in edits else x

        x = block.norm_attention(residual)
        query, key = edited("query", block.query(x)), edited("key", block.key(x))
        scores = (query @ key.transpose(-1, -2) / math.sqrt(width)).masked_fill(future, -torch.inf)
        pattern = edited("pattern", scores.softmax(dim=-1))
        patterns.append(pattern)
        residual = residual + block.output(pattern @ block.value(x))
        residual = residual + block.down(F.gelu(block.up(block.norm_mlp(residual))))
    return model.unembedding(model.norm(residual)), patterns


def everywhere(
    model_logits: torch.Tensor,
    logits: torch.Tensor,
    model_patterns: torch.Tensor,
    patterns: torch.Tensor,
    targets: torch.Tensor,
    candidates: torch.Tensor,
) -> torch.Tensor:
    """[metric, batch, position]: the metrics by their definitions."""
    log_p, log_q = model_logits.log_softmax(-1), logits.log_softmax(-1)
    said_p = candidates[model_logits[..., candidates].argmax(-1)]
    said_q = candidates[logits[..., candidates].argmax(-1)]
    right_p, right_q = said_p == targets, said_q == targets
    bits = math.log(2)
    values = (
        said_p == said_q,
        jensen_shannon(model_patterns, patterns).mean(0),
        overlap(most_attended(model_patterns), most_attended(patterns)).mean(0),
        jensen_shannon(log_p.exp(), log_q.exp()),
        (log_p.exp() * (log_p - log_q)).sum(-1) / bits,
        right_p,
        right_q,
        -log_p.gather(-1, targets[..., None])[..., 0] / bits,
        -log_q.gather(-1, targets[..., None])[..., 0] / bits,
        right_q & ~right_p,
        right_p & ~right_q,
        ~right_p & ~right_q & (said_p != said_q),
    )
    return torch.stack([v.float() for v in values])


def most_attended(patterns: torch.Tensor) -> torch.Tensor:
    return (patterns >= patterns.amax(-1, keepdim=True) * (1 - 1e-4)).float()


def overlap(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    both = (a * b).sum(-1)
    return both / (a.sum(-1) + b.sum(-1) - both)


def jensen_shannon(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    middle = (p + q) / 2
    both = torch.special.entr(middle) - (torch.special.entr(p) + torch.special.entr(q)) / 2
    return both.sum(-1) / math.log(2)


if __name__ == "__main__":
    main()
