"""The work that every peer does: the model, the tokens, the projectors, the cells and the metrics.

A cell is one head of one layer with the keys and queries projected onto fixed subspaces of one
rank. A sweep runs the model on every batch and then every cell, and averages three numbers over all
positions: JSD of the outputs in bits, agreement of the predictions, difference in cross-entropy in
bits. Cells are numbered layer by layer, head by head, rank by rank.

    python benchmarks/peers/work.py FOLDER [--vocabulary N] [--batches N] ...

writes `weights.safetensors` (Hugging Face's names) and `work.safetensors` (tokens, projectors and
what plain hooks make of them: the reference of the equality gate).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

SEQUENCES = 16  # a batch
FIT_SEQUENCES = 64
RANKS = (1, 4, 16)
DEVIATION = 0.1  # with 0.02 the proxies differ by 1e-7 bits, and equality means nothing
NEAR = 1e-4  # two logits this near may change places by rounding
BITS = math.log(2)


@dataclass(frozen=True)
class Shape:
    layers: int = 6
    heads: int = 8
    width: int = 256
    vocabulary: int = 5_000
    length: int = 64

    @property
    def head_width(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class Cell:
    number: int
    layer: int
    head: int
    rank: int  # of RANKS, not the rank itself


def cells(projectors: Tensor) -> list[Cell]:
    layers, heads, ranks = projectors.shape[:3]
    return [
        Cell((layer * heads + head) * ranks + rank, layer, head, rank)
        for layer in range(layers)
        for head in range(heads)
        for rank in range(ranks)
    ]


class Sweep:
    """A call runs every cell on every batch. A peer says how the logits come about.

    Args:
        weights: the safetensors file of the model.
        tokens: [batches, sequences, positions + 1]; the last of a sequence is only predicted.
        projectors: [layer, head, rank, kind, dim, dim], kinds being query and key, from the right.
    """

    attention = "sdpa"  # the implementation that the model uses, for the table

    def __init__(self, weights: Path, tokens: Tensor, projectors: Tensor) -> None:
        self.tokens = tokens
        self.projectors = projectors
        self.cells = cells(projectors)
        self.metrics: Metrics = Usual

    def unedited(self, inputs: Tensor) -> Tensor:
        """The model's logits, [sequence, position, vocabulary]; the cells that follow are on it."""
        raise NotImplementedError

    def edited(self, cell: Cell) -> Tensor:
        """The logits of a cell on the inputs that `unedited` was given last."""
        raise NotImplementedError

    def __call__(self) -> Tensor:
        """The means, [cell, metric]."""
        means = torch.zeros(len(self.cells), 3, device=self.tokens.device)
        for batch in self.tokens:
            inputs, targets = batch[:, :-1], batch[:, 1:]
            metrics = self.metrics(self.unedited(inputs), targets)
            for cell in self.cells:
                means[cell.number] += metrics(self.edited(cell))
        return means / len(self.tokens)


def project_fused(fused: Tensor, head: int, projectors: Tensor) -> Tensor:
    """Project a head's queries and keys in GPT-2's fused `c_attn` output, in place.

    Args:
        fused: [sequence, position, 3 × width]: all queries, all keys, all values.
        head: which head.
        projectors: [kind, dim, dim].
    """
    width = projectors.shape[-1]
    for kind, projector in enumerate(projectors):
        start = kind * (fused.shape[-1] // 3) + head * width
        part = fused[..., start : start + width]
        part.copy_(part @ projector)
    return fused


class Usual:
    """Metrics as in a notebook: log-softmaxes, and the definitions written down."""

    def __init__(self, logits: Tensor, targets: Tensor) -> None:
        self.logits = logits
        self.targets = targets[..., None]

    def __call__(self, logits: Tensor) -> Tensor:
        log_p, log_q = self.logits.log_softmax(-1), logits.log_softmax(-1)
        p, q = log_p.exp(), log_q.exp()
        log_m = ((p + q) / 2).log()
        jsd = ((p * (log_p - log_m)).sum(-1) + (q * (log_q - log_m)).sum(-1)) / 2
        agreement = (self.logits.argmax(-1) == logits.argmax(-1)).float()
        more = log_p.gather(-1, self.targets) - log_q.gather(-1, self.targets)
        return torch.stack([jsd.mean() / BITS, agreement.mean(), more.mean() / BITS])


class Lean:
    """The same numbers for fewer passes over the vocabulary.

    The model's side is computed once a batch; JSD comes from entropies; tiles stay in the cache;
    `amax` and `gather` stand for `argmax`, which is slow on a CPU.
    """

    numbers_a_tile = 2**19

    def __init__(self, logits: Tensor, targets: Tensor) -> None:
        self.rows = max(1, self.numbers_a_tile // logits.shape[-1])
        self.targets = targets.reshape(-1, 1)
        flat = logits.flatten(0, 1)  # [token, vocabulary]
        log_p = flat.log_softmax(-1)
        self.predicted = flat.argmax(-1, keepdim=True)
        self.log_target = log_p.gather(-1, self.targets)
        self.p = log_p.exp()
        self.entropy = -(self.p * log_p).sum(-1)

    def __call__(self, logits: Tensor) -> Tensor:
        sums = torch.zeros(3, dtype=torch.float64)
        tokens = len(self.p)
        flat = logits.reshape(tokens, -1)
        for start in range(0, tokens, self.rows):
            tile = slice(start, start + self.rows)
            x = flat[tile]
            highest = x.amax(-1, keepdim=True)
            agreement = x.gather(-1, self.predicted[tile]) == highest
            shifted = x - highest
            log_target = shifted.gather(-1, self.targets[tile])
            q = shifted.exp()
            total = q.sum(-1, keepdim=True)
            q /= total
            log_total = total.log()
            entropy = log_total[:, 0] - torch.linalg.vecdot(q, shifted)
            both = q.add_(self.p[tile])  # twice the mixture
            log_both = torch.log(both.clamp_min(1e-30), out=shifted)
            mixture = BITS - torch.linalg.vecdot(both, log_both) / 2  # its entropy
            jsd = mixture - (self.entropy[tile] + entropy) / 2
            more = self.log_target[tile] - (log_target - log_total)
            sums += torch.stack([jsd.sum() / BITS, agreement.sum(), more.sum() / BITS])
        return (sums / tokens).float()


Metrics = Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]]
METRICS: dict[str, Metrics] = {"usual": Usual, "lean": Lean}


def load_model(weights: Path) -> GPT2LMHeadModel:
    """Hugging Face's model of a weights file, with SDPA unless it is asked for otherwise."""
    with safe_open(weights, "pt") as file:
        shape = Shape(**json.loads(file.metadata()["shape"]))
    model = empty_model(shape)
    wrong = model.load_state_dict(load_file(weights), strict=False)
    if wrong.unexpected_keys or set(wrong.missing_keys) - {"lm_head.weight"}:  # tied
        raise ValueError(f"{weights} does not fit the model of {shape}: {wrong}")
    return model


def empty_model(shape: Shape) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_positions=shape.length,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="sdpa",
    )
    return GPT2LMHeadModel(config).eval()


def random_model(shape: Shape, seed: int) -> GPT2LMHeadModel:
    generator = torch.Generator().manual_seed(seed)
    model = empty_model(shape)
    for name, parameter in model.named_parameters():
        if ".ln_" not in name:
            parameter.normal_(0, DEVIATION, generator=generator)
    return model


def save_model(model: GPT2LMHeadModel, shape: Shape, weights: Path) -> None:
    state = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}  # tied
    save_file(state, weights, {"shape": json.dumps(asdict(shape))})


def fit_projectors(model: GPT2LMHeadModel, tokens: Tensor) -> Tensor:
    """[layer, head, rank, kind, dim, dim] from an SVD of the model's own queries and keys.

    Each projects a row from the right onto the right singular vectors of the `RANKS` largest
    singular values, without centring.
    """
    heads = model.config.n_head
    fused: list[Tensor] = []
    hooks = [
        block.attn.c_attn.register_forward_hook(lambda _, __, output: fused.append(output))
        for block in model.transformer.h
    ]
    model(tokens)
    for hook in hooks:
        hook.remove()
    stack = torch.stack(fused).flatten(1, 2)  # [layer, token, 3 × width]
    split = stack.unflatten(-1, (3, heads, -1))[:, :, :2]
    _, _, right = torch.linalg.svd(split.permute(0, 3, 2, 1, 4).double(), full_matrices=False)
    kept = [right[..., :rank, :] for rank in RANKS]  # each [layer, head, kind, rank, dim]
    projectors = torch.stack([v.transpose(-1, -2) @ v for v in kept], dim=2)
    return projectors.float().contiguous()


def near_ties(sweep: Sweep) -> Tensor:
    """[cell]: positions whose prediction rounding may change, in the model or in the cell."""
    counts = torch.zeros(len(sweep.cells), dtype=torch.long)

    def near(logits: Tensor) -> Tensor:
        top = logits.topk(2).values
        return top[..., 0] - top[..., 1] < NEAR

    for batch in sweep.tokens:
        of_model = near(sweep.unedited(batch[:, :-1]))
        for cell in sweep.cells:
            counts[cell.number] += (of_model | near(sweep.edited(cell))).sum()
    return counts


def gate_cell(projectors: Tensor) -> Cell:
    """The cell whose logits the gate compares: the last head of a middle layer, lowest rank."""
    layers, heads = projectors.shape[:2]
    middle = (c for c in cells(projectors) if (c.layer, c.head) == (layers // 2, heads - 1))
    return next(middle)


@torch.inference_mode()
def main() -> None:
    import hooks  # which imports this module

    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--batches", type=int, default=1)
    arguments.add_argument("--vocabulary", type=int, default=Shape.vocabulary)
    arguments.add_argument("--small", action="store_true", help="a toy, to try a peer out")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)

    shape = Shape(vocabulary=options.vocabulary)
    if options.small:
        shape = Shape(layers=3, heads=2, width=64, vocabulary=options.vocabulary, length=16)
    model = random_model(shape, options.seed)
    generator = torch.Generator().manual_seed(options.seed + 1)

    def draw(*size: int) -> Tensor:
        return torch.randint(shape.vocabulary, size, generator=generator)

    projectors = fit_projectors(model, draw(FIT_SEQUENCES, shape.length))
    tokens = draw(options.batches, SEQUENCES, shape.length + 1)
    weights = options.folder / "weights.safetensors"
    save_model(model, shape, weights)

    sweep = hooks.EveryForward(weights, tokens, projectors)
    results = sweep()
    inputs = tokens[0, :, :-1]
    sweep.unedited(inputs)
    reference = {
        "tokens": tokens,
        "projectors": projectors,
        "unedited": model(inputs).logits,
        "edited": sweep.edited(gate_cell(projectors)),
        "results": results,
        "near_ties": near_ties(hooks.Prefix(weights, tokens, projectors)),
    }
    save_file(reference, options.folder / "work.safetensors")
    jsd, agreement, more = results.median(0).values.tolist()
    print(
        f"{len(results)} cells, {tokens[..., 1:].numel():,} positions; medians over the cells: "
        f"JSD {jsd:.1e} bits, agreement {agreement:.3f}, cross-entropy {more:+.1e} bits"
    )
    if jsd < 1e-4:
        raise SystemExit("the edits move too little for equality to mean anything")


if __name__ == "__main__":
    main()
