"""Training a decoder on a task: length-bucketed batches, Muon and AdamW, exact resuming.

Everything random is a function of (seed, step). So a checkpoint needs no state of a generator, and
a resumed run ends with the same weights as one that was never stopped.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from anamorph.errors import AnamorphError, require
from anamorph.files import write_table
from anamorph.machine.devices import find_device, is_fast_at_bfloat16
from anamorph.models.decoder import Decoder, DecoderConfig
from anamorph.progress import Event, Watch
from anamorph.progress.watching import watching
from anamorph.store import Address, address_of
from anamorph.tasks.base import Split, Task
from anamorph.tasks.batches import collate, plan, shuffled, targets
from anamorph.training.checkpoint import Checkpoint, Reached
from anamorph.training.gradient import gradient_in_pieces
from anamorph.training.graphs import CudaGraphs, Replayed
from anamorph.training.muon import Muon

LOOK = 50  # steps on a device between two looks at the loss, for which the host has to wait
EVALUATED = 200  # sequences of each split, for the curves: they tell enough and take little time


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained.

    Attributes:
        steps: optimizer steps.
        batch_tokens: tokens a step, padding included.
        optimizer: `muon` (Muon for the blocks' matrices, AdamW for the rest) or `adamw`.
        learning_rate: the highest of AdamW.
        muon_learning_rate: the highest of Muon.
        weight_decay: decoupled, for both.
        warmup: share of the steps in which the rates rise from zero.
        decay: share of the steps, at the end, in which they fall to zero.
        clip: the gradient's largest norm.
        precision: `32-true` computes in float32, `bf16-mixed` multiplies matrices in bfloat16 (by
            `torch.autocast`); `auto` is `bf16-mixed` on devices that are fast at it.
        evaluate_every: steps between two points of the curves.
        checkpoint_every: steps between two checkpoints.
    """

    steps: int = 6000
    batch_tokens: int = 4096
    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: float = 0.01
    muon_learning_rate: float = 0.015
    weight_decay: float = 0.01
    warmup: float = 0.1
    decay: float = 0.6
    clip: float = 1.0
    precision: Literal["auto", "32-true", "bf16-mixed"] = "32-true"
    evaluate_every: int = 1000
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        given = vars(self)
        for name in ("steps", "batch_tokens", "evaluate_every", "checkpoint_every"):
            require(f"Training: {name}", given[name], whole=True, least=1)
        for name in ("learning_rate", "muon_learning_rate", "clip"):
            require(f"Training: {name}", given[name], above=0)
        for name in ("weight_decay", "warmup", "decay"):
            require(f"Training: {name}", given[name], least=0, most=1)
        require("Training: optimizer", self.optimizer, among=("muon", "adamw"))
        require("Training: precision", self.precision, among=("auto", "32-true", "bf16-mixed"))


def train(
    task: Task,
    *,
    config: TrainingConfig | None = None,
    model: DecoderConfig | None = None,
    seed: int = 0,
    out: Address | str | None = None,
    watch: Watch | None = None,
    device: torch.device | str = "auto",
) -> tuple[Decoder, pl.DataFrame]:
    """Train a decoder to predict the next token.

    The same device gives the same weights again, also if it is stopped on the way; another device
    gives others by rounding. On a GPU steps are replayed from CUDA graphs, and what they come to is
    looked at every 50 steps, and before anything is evaluated or written.

    Args:
        task: its `train` split is learnt; every other split gets a curve.
        config: how to train.
        model: the decoder's shape; by default a two-layer one that fits the task.
        seed: of the weights and of the order of batches.
        out: a folder for checkpoints, from which a stopped training goes on, and in the end for
            `model.safetensors` and `history.parquet`.
        watch: told of every step, on a device whenever the loss is looked at: the event `training`,
            with `loss` and `tokens_per_second` among its numbers. By default a bar in a notebook.
        device: where to train, as of `anamorph.machine.devices.find_device`. The model stays there.

    Returns:
        the model, and its curves: one row a split and evaluation, with `step`, `tokens` seen,
        `loss` (bits a token in training), `split`, `accuracy` (0 to 1) and `cross_entropy` (bits),
        both at the scored positions.

    Raises:
        AnamorphError: if the loss is not finite, or a checkpoint is damaged or another training's.
    """
    device = find_device(device)
    config = resolved(config or TrainingConfig(), device)
    model = model or default_model(task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = Decoder(model).to(device)
    on_cpu = decoder.device.type == "cpu"
    optimizers = _optimizers(decoder, config, captured=decoder.device.type == "cuda")
    identity = {
        "task": dict(task.spec),
        "training": asdict(config),
        "model": asdict(model),
        "seed": seed,
        "device": decoder.device.type,
    }
    checkpoint = None if out is None else Checkpoint(address_of(out), identity)
    reached = checkpoint.restore(decoder, optimizers) if checkpoint else Reached()
    reached.loss = reached.loss.to(decoder.device)
    batches = shuffled(task.train.lengths, config.batch_tokens, seed)
    started, at_start = time.monotonic(), reached.tokens
    with (
        watching(watch) as told,
        _steps(decoder, optimizers, task.train, config) as take_step,
    ):
        for sequences in islice(batches, reached.step, config.steps):
            bits = take_step(sequences, _rates(reached.step, config))
            reached.step += 1
            reached.tokens += len(sequences) * int(task.train.lengths[sequences].max())
            reached.loss = bits if reached.step == 1 else 0.98 * reached.loss + 0.02 * bits
            last = reached.step == config.steps
            evaluates = last or reached.step % config.evaluate_every == 0
            writes = not last and reached.step % config.checkpoint_every == 0
            if not (on_cpu or evaluates or writes or reached.step % LOOK == 0):
                continue
            loss = float(reached.loss)
            _require_finite(loss)
            if evaluates:
                reached.history += _curves(decoder, task, reached)
            if checkpoint and writes:
                checkpoint.write(decoder, optimizers, reached)
            speed = (reached.tokens - at_start) / (time.monotonic() - started)
            told(_event(reached.step, config.steps, loss, speed))
    curves = pl.DataFrame(reached.history)
    if checkpoint:
        write_table(checkpoint.path.with_name("history.parquet"), curves)
        decoder.save(checkpoint.path.with_name("model.safetensors"))
        checkpoint.path.unlink(missing_ok=True)  # last: a training that is killed here can go on
    return decoder, curves


def _event(step: int, steps: int, loss: float, speed: float) -> Event:
    note = f"{speed / 1000:.0f}k tokens/s, loss {loss:.3f} bits"
    return Event("training", step, steps, note, {"loss": loss, "tokens_per_second": speed})


def default_model(task: Task, **shape: Any) -> DecoderConfig:
    """A decoder's configuration with the vocabulary and the context that the task needs.

    Raises:
        AnamorphError: if the shape has an unknown part, or is too small for the task.
    """
    longest = max(int(split.lengths.max(initial=1)) for split in task.splits.values())
    known = [field.name for field in fields(DecoderConfig)]
    if unknown := [name for name in shape if name not in known]:
        raise AnamorphError(
            f"The model takes no {', '.join(unknown)}; it takes: {', '.join(known)}."
        )
    needed = {"vocabulary": len(task.vocabulary), "context": longest}
    config = DecoderConfig(**needed | shape)
    for name, least in needed.items():
        if (given := vars(config)[name]) < least:
            raise AnamorphError(
                f"The task {task.name!r} needs a model with a {name} of at least {least}; "
                f"got {given}. Leave model.{name} out to have it fit."
            )
    return config


@torch.inference_mode()
def accuracy(model: Decoder, split: Split, candidates: Tensor) -> tuple[float, float]:
    """Share of right predictions among the candidates, and cross-entropy in bits, where scored."""
    right = bits = count = 0.0
    order = np.argsort(split.lengths, kind="stable")
    for part in plan(split.lengths[order], batch_tokens=16_384):
        batch, wanted = collate(split, order[part]), targets(split, order[part])
        batch, wanted = batch.to(model.device), wanted.to(model.device)
        # [scored, vocabulary]
        logits = model.logits(model.run(batch, at=wanted.at).state)[0][wanted.valid]
        token = wanted.token[wanted.valid]
        chosen = candidates[logits[:, candidates].argmax(dim=-1)]
        right += (chosen == token).sum().item()
        bits += F.cross_entropy(logits, token, reduction="sum").item() / math.log(2)
        count += len(token)
    return (right / count, bits / count) if count else (math.nan, math.nan)


def resolved(config: TrainingConfig, device: torch.device) -> TrainingConfig:
    """The configuration with the precision that `auto` stands for on a device."""
    if config.precision != "auto":
        return config
    fast = is_fast_at_bfloat16(device)
    return replace(config, precision="bf16-mixed" if fast else "32-true")


@contextmanager
def _steps(
    model: Decoder, optimizers: Sequence[Optimizer], split: Split, config: TrainingConfig
) -> Iterator[Callable[[NDArray[np.int64], Sequence[float]], Tensor]]:
    """What learns from sequences, at a rate for each optimizer, and gives the loss in bits."""
    bfloat16 = config.precision == "bf16-mixed"
    if model.device.type != "cpu":
        capture = CudaGraphs(model.device) if model.device.type == "cuda" else None
        options: dict[str, Any] = {"bfloat16": bfloat16, "clip": config.clip, "capture": capture}
        yield Replayed(model, optimizers, split, **options)
        return
    with gradient_in_pieces(model, bfloat16) as gradient:

        def step(sequences: NDArray[np.int64], rates: Sequence[float]) -> Tensor:
            batch = collate(split, sequences)
            bits = gradient(batch.tokens, batch.mask)
            _require_finite(float(nn.utils.clip_grad_norm_(model.parameters(), config.clip)))
            for optimizer, rate in zip(optimizers, rates, strict=True):
                optimizer.param_groups[0]["lr"] = rate
                optimizer.step()
                optimizer.zero_grad()
            return bits

        yield step


def _require_finite(number: float) -> None:
    if not math.isfinite(number):
        raise AnamorphError(
            "Training broke down: the gradient is not finite. Lower the learning rates "
            "(training.learning_rate, training.muon_learning_rate) or use precision 32-true."
        )


def _optimizers(model: Decoder, config: TrainingConfig, captured: bool = False) -> list[Optimizer]:
    """AdamW, and before it Muon, if it is asked for, for the matrices inside the blocks.

    Args:
        model: whose weights.
        config: how to train.
        captured: whether their steps will be, so that rates have to be where the weights are.
    """
    muon, decay = config.optimizer == "muon", config.weight_decay
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2 and muon]
    inside = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inside]
    rates = [torch.zeros((), device=model.device) if captured else 1e-3 for _ in range(2)]
    betas, options = (0.9, 0.98), {"fused": True, "capturable": captured}
    adamw = AdamW(rest, lr=rates[0], betas=betas, weight_decay=decay, **options)
    return [Muon(matrices, lr=rates[1], weight_decay=decay), adamw] if muon else [adamw]


def _rates(step: int, config: TrainingConfig) -> list[float]:
    """The learning rates of `_optimizers` at a step: they rise, stay, and fall to zero linearly."""
    rise = (step + 1) / max(1, config.warmup * config.steps)
    fall = (config.steps - step) / max(1, config.decay * config.steps)
    rates = [config.muon_learning_rate] if config.optimizer == "muon" else []
    return [rate * min(1.0, rise, fall) for rate in (*rates, config.learning_rate)]


def _curves(model: Decoder, task: Task, reached: Reached) -> list[dict[str, Any]]:
    candidates = torch.from_numpy(task.candidates).to(model.device)
    rows = []
    for split in task.evaluated:
        part = split.take(np.arange(min(EVALUATED, len(split))))
        right, bits = accuracy(model, part, candidates)
        rows.append(
            {"step": reached.step, "tokens": reached.tokens, "loss": float(reached.loss)}
            | {"split": split.name, "accuracy": right, "cross_entropy": bits}
        )
    return rows
