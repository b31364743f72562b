"""Training a decoder on a task: length-bucketed batches, Muon and AdamW, exact resuming.

Everything random is a function of (seed, step), so a checkpoint needs no generator's state and a
resumed run ends with the same weights as one that was never stopped.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from anamorph.errors import AnamorphError
from anamorph.machine.process import as_found
from anamorph.models.decoder import Decoder, DecoderConfig
from anamorph.models.weights import read_weights, write_weights
from anamorph.runs.folder import write_table
from anamorph.tasks.base import Split, Task
from anamorph.tasks.batches import collate, plan, shuffled, targets
from anamorph.training.cpu.gradient import Gradient
from anamorph.training.cpu.muon import Muon

if TYPE_CHECKING:
    import lightning_fabric as lf

EVALUATED = 200  # sequences a split for the curves: enough to see, cheap enough to repeat


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained.

    Attributes:
        steps: optimizer steps.
        batch_tokens: tokens a step, padding included.
        optimizer: `muon` (Muon for the blocks' matrices, AdamW for the rest) or `adamw`.
        learning_rate: AdamW's, at its highest.
        muon_learning_rate: Muon's, at its highest.
        weight_decay: decoupled, for both.
        warmup: share of the steps in which the rates rise from zero.
        decay: share of the steps, at the end, in which they fall to zero.
        clip: the gradient's largest norm.
        precision: Lightning Fabric's, `32-true` or `bf16-mixed`; `auto` is the second on devices
            that multiply bfloat16 fast.
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
        for name in ("steps", "batch_tokens", "evaluate_every", "checkpoint_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise AnamorphError(
                    f"Training: {name} must be a whole number above 0; got {value!r}."
                )
        for name in ("learning_rate", "muon_learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise AnamorphError(
                    f"Training: {name} must be above 0; got {getattr(self, name)!r}."
                )
        for name in ("weight_decay", "warmup", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise AnamorphError(
                    f"Training: {name} must lie between 0 and 1; got {getattr(self, name)!r}."
                )
        for name, allowed in (
            ("optimizer", ("muon", "adamw")),
            ("precision", ("auto", "32-true", "bf16-mixed")),
        ):
            if getattr(self, name) not in allowed:
                raise AnamorphError(
                    f"Training: {name} must be one of {', '.join(allowed)}; "
                    f"got {getattr(self, name)!r}."
                )


@dataclass(frozen=True)
class Progress:
    """Where a training stands: told to whoever watches it after every step."""

    step: int
    steps: int
    loss: float  # bits a token, averaged over the last steps
    tokens_per_second: float


def train(
    task: Task,
    *,
    config: TrainingConfig | None = None,
    model: DecoderConfig | None = None,
    seed: int = 0,
    out: Path | str | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
    fabric: "lf.Fabric | None" = None,
) -> tuple[Decoder, pl.DataFrame]:
    """Train a decoder to predict the next token.

    Args:
        task: its `train` split is learnt; every other split gets a curve.
        config: how to train.
        model: the decoder's shape; by default a two-layer one that fits the task.
        seed: of the weights and of the order of batches.
        out: a folder for checkpoints, from which a stopped training goes on, and in the end for
            `model.safetensors` and `history.parquet`.
        watch: called after every step.
        fabric: devices and precision; by default the CPU. The model stays on its device.

    Returns:
        the model, and its curves: one row a split and evaluation, with `step`, `tokens` seen,
        `loss` (bits a token in training), `split`, `accuracy` (0 to 1) and `cross_entropy` (bits),
        both at the scored positions.

    Raises:
        AnamorphError: if the loss is not finite, or a checkpoint is damaged or another training's.
    """
    config = config or TrainingConfig()
    model = model or default_model(task)
    config = resolved(config)
    precision = cast(Literal["32-true", "bf16-mixed"], config.precision)
    with as_found():  # here: it takes nearly two seconds to import
        import lightning_fabric as lf

        fabric = fabric or lf.Fabric(accelerator="cpu", devices=1, precision=precision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = Decoder(model)
    wrapped, *optimizers = fabric.setup(decoder, *_optimizers(decoder, config))
    identity = {
        "task": dict(task.spec),
        "training": asdict(config),
        "model": asdict(model),
        "seed": seed,
    }
    checkpoint = _Checkpoint(Path(out) if out else None, identity)
    step, tokens, loss, history = checkpoint.restore(decoder, optimizers)

    batches = shuffled(task.train.lengths, config.batch_tokens, seed)
    own = islice(batches, step * fabric.world_size + fabric.global_rank, None, fabric.world_size)
    started, at_start = time.monotonic(), tokens
    with Gradient(fabric, wrapped) as gradient:
        while step < config.steps:
            batch = collate(task.train, next(own)).to(fabric.device)
            for optimizer, rate in zip(optimizers, _rates(step, config), strict=True):
                optimizer.param_groups[0]["lr"] = rate
            bits = gradient(batch.tokens, batch.mask)
            _update(decoder, optimizers, config.clip)
            step += 1
            tokens += batch.tokens.numel() * fabric.world_size
            loss = bits if step == 1 else 0.98 * loss + 0.02 * bits
            last = step == config.steps
            if last or step % config.evaluate_every == 0:
                history += _curves(decoder, task, step, tokens, float(loss))
            if not last and step % config.checkpoint_every == 0 and fabric.global_rank == 0:
                checkpoint.write(decoder, optimizers, step, tokens, float(loss), history)
            watch(
                Progress(
                    step,
                    config.steps,
                    float(loss),
                    (tokens - at_start) / (time.monotonic() - started),
                )
            )
    curves = pl.DataFrame(history)
    if out is not None and fabric.global_rank == 0:
        write_table(Path(out) / "history.parquet", curves)
        decoder.save(Path(out) / "model.safetensors")
        checkpoint.remove()  # last: a training that is killed here goes on from it
    return decoder, curves


def default_model(task: Task, **shape: Any) -> DecoderConfig:
    """A decoder's configuration with the vocabulary and the context that the task needs.

    Raises:
        AnamorphError: if the shape has an unknown part, or is too small for the task.
    """
    longest = max(int(split.lengths.max(initial=1)) for split in task.splits.values())
    needed = {"vocabulary": len(task.vocabulary), "context": longest}
    known = [field.name for field in fields(DecoderConfig)]
    if unknown := [name for name in shape if name not in known]:
        raise AnamorphError(
            f"The model takes no {', '.join(unknown)}; it takes: {', '.join(known)}."
        )
    config = DecoderConfig(**needed | shape)
    for name, least in needed.items():
        if getattr(config, name) < least:
            raise AnamorphError(
                f"The task {task.name!r} needs a model with a {name} of at least {least}; got "
                f"{getattr(config, name)}. Leave model.{name} out to have it fit."
            )
    return config


@torch.inference_mode()
def accuracy(model: Decoder, split: Split, candidates: Tensor) -> tuple[float, float]:
    """Share of right predictions among the candidates, and cross-entropy in bits, where scored."""
    right = bits = count = 0.0
    device = model.unembedding.weight.device
    order = np.argsort(split.lengths, kind="stable")
    for part in plan(split.lengths[order], batch_tokens=16_384):
        batch, wanted = collate(split, order[part]).to(device), targets(split, order[part])
        wanted = wanted.to(device)
        logits = model.logits(model.run(batch, at=wanted.at).state)[0][
            wanted.valid
        ]  # [scored, vocabulary]
        token = wanted.token[wanted.valid]
        chosen = candidates[logits[:, candidates].argmax(dim=-1)]
        right += (chosen == token).sum().item()
        bits += F.cross_entropy(logits, token, reduction="sum").item() / math.log(2)
        count += len(token)
    return (right / count, bits / count) if count else (math.nan, math.nan)


def resolved(config: TrainingConfig) -> TrainingConfig:
    """The configuration with the precision that `auto` stands for on this processor."""
    if config.precision != "auto":
        return config
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return replace(config, precision="bf16-mixed" if fast else "32-true")


def _update(model: nn.Module, optimizers: list[Any], clip: float) -> None:
    """One step of the optimizers."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
    if not torch.isfinite(norm):
        raise AnamorphError(
            "Training broke down: the gradient is not finite. Lower the learning rates "
            "(training.learning_rate, training.muon_learning_rate) or use precision 32-true."
        )
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def _optimizers(model: Decoder, config: TrainingConfig) -> list[Optimizer]:
    """AdamW, and in front of it Muon (Jordan et al. 2024) for the matrices inside the blocks."""
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
    inside = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inside]
    decay = config.weight_decay
    if config.optimizer == "adamw":
        return [AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=decay, fused=True)]
    return [
        Muon(matrices, weight_decay=decay),
        AdamW(rest, betas=(0.9, 0.98), weight_decay=decay, fused=True),
    ]


def _rates(step: int, config: TrainingConfig) -> list[float]:
    """The learning rates of `_optimizers` at a step: up, level, and down to zero, in lines."""
    rise = (step + 1) / max(1, config.warmup * config.steps)
    fall = (config.steps - step) / max(1, config.decay * config.steps)
    scale = min(1.0, rise, fall)
    adamw = [config.learning_rate * scale]
    return adamw if config.optimizer == "adamw" else [config.muon_learning_rate * scale, *adamw]


def _curves(
    model: Decoder, task: Task, step: int, tokens: int, loss: float
) -> list[dict[str, Any]]:
    candidates = torch.from_numpy(task.candidates).to(model.unembedding.weight.device)
    rows = []
    for split in task.evaluated:
        part = split.take(np.arange(min(EVALUATED, len(split))))
        right, bits = accuracy(model, part, candidates)
        rows.append(
            {"step": step, "tokens": tokens, "loss": loss, "split": split.name}
            | {"accuracy": right, "cross_entropy": bits}
        )
    return rows


class _Checkpoint:
    """The one file from which a stopped training goes on."""

    def __init__(self, folder: Path | None, identity: dict[str, Any]) -> None:
        self.path = folder / "checkpoint.safetensors" if folder else None
        self.identity = identity

    def write(
        self,
        model: Decoder,
        optimizers: list[Any],
        step: int,
        tokens: int,
        loss: float,
        history: list[dict[str, Any]],
    ) -> None:
        if self.path is None:
            return
        tensors = {f"model.{name}": x for name, x in model.state_dict().items()}
        for number, optimizer in enumerate(optimizers):
            for index, values in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{index}.{k}": x for k, x in values.items()}
        progress = {"step": step, "tokens": tokens, "loss": loss, "history": history}
        write_weights(self.path, tensors, {"identity": self.identity, "progress": progress})

    def restore(
        self, model: Decoder, optimizers: list[Any]
    ) -> tuple[int, int, float | Tensor, list[dict[str, Any]]]:
        """Load what was written last: step, tokens, loss and curves; a new start if nothing was."""
        if self.path is None or not self.path.exists():
            return 0, 0, 0.0, []
        tensors, metadata = read_weights(self.path)
        if metadata.get("identity") != self.identity:
            raise AnamorphError(
                f"{self.path} is the checkpoint of another training. It was made with "
                f"{metadata.get('identity')}; asked for is {self.identity}. Delete it or use "
                "another folder."
            )
        try:
            return self._load(model, optimizers, tensors, metadata["progress"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise AnamorphError(
                f"{self.path} is damaged: it is not what a training writes ({error!r}). Delete it "
                "to train from the start."
            ) from error

    @staticmethod
    def _load(
        model: Decoder,
        optimizers: list[Any],
        tensors: Mapping[str, Tensor],
        progress: Mapping[str, Any],
    ) -> tuple[int, int, Tensor, list[dict[str, Any]]]:
        model.load_state_dict(
            {k.removeprefix("model."): x for k, x in tensors.items() if k.startswith("model.")}
        )
        for number, optimizer in enumerate(optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for key, x in tensors.items():
                if key.startswith(f"optimizer.{number}."):
                    _, _, index, name = key.split(".", 3)
                    state.setdefault(int(index), {})[name] = x
            optimizer.load_state_dict(
                {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
            )
        loss = torch.tensor(progress["loss"])  # in float32, as it is averaged
        return progress["step"], progress["tokens"], loss, progress["history"]

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)
