"""Training as a device does it: padded to few shapes, captured, replayed; on the CPU."""

import math
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.models.decoder import Decoder, DecoderConfig
from anamorph.progress import Event
from anamorph.tasks import Task
from anamorph.tasks.batches import shuffled
from anamorph.training import train as module
from anamorph.training.graphs import Replayed, Work, roomy
from anamorph.training.train import (
    TrainingConfig,
    _optimizers,
    _rates,
    default_model,
    resolved,
    train,
)
from pretended import DEVICE, Pretended, on_accelerator

CONFIG = TrainingConfig(steps=30, batch_tokens=300, evaluate_every=30)
SHAPE = {"width": 16, "mlp": 32, "layers": 2, "heads": 2}


class StandIn:
    """Captures nothing: what is replayed is the work itself, on the same memory."""

    def __init__(self, *_: Any) -> None:
        self.captured = self.replayed = 0

    def __call__(self, work: Work) -> Work:
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            work()

        return replay


class Failing(StandIn):
    def __call__(self, work: Work) -> Work:
        self.captured += 1
        work_on_nothing = "operation not permitted when stream is capturing"
        raise RuntimeError(work_on_nothing)


def replayed(
    task: Task, config: TrainingConfig, shape: DecoderConfig, capture: StandIn | None
) -> tuple[Decoder, Replayed, list[float]]:
    """The training of `train`, with the steps of a device."""
    torch.manual_seed(0)
    model = Decoder(shape)
    optimizers = _optimizers(model, config, captured=True)
    steps = Replayed(
        model, optimizers, task.train, bfloat16=False, clip=config.clip, capture=capture
    )
    batches = islice(shuffled(task.train.lengths, config.batch_tokens, 0), config.steps)
    losses = [float(steps(batch, _rates(n, config))) for n, batch in enumerate(batches)]
    return model, steps, losses


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary"])
def test_padded_and_replayed_training_is_the_plain_one(
    task: Task, optimizer: Any, positions: Any
) -> None:
    config, shape = replace(CONFIG, optimizer=optimizer), default_model(task, **SHAPE)
    shape = replace(shape, positions=positions)
    plain, curves = train(task, config=config, model=shape)
    capture = StandIn()
    model, steps, losses = replayed(task, config, shape, capture)
    torch.manual_seed(0)
    start = Decoder(shape).state_dict()
    for name, weight in plain.state_dict().items():
        if name.endswith("weight"):
            assert (weight - start[name]).abs().max() > 1e-3
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=0, atol=1e-5)
    mean = losses[0]
    for loss in losses[1:]:
        mean = 0.98 * mean + 0.02 * loss
    assert curves["loss"][-1] == pytest.approx(mean, rel=1e-5)
    # The first batch of a shape readies it, the second captures, and from then on all replay.
    assert len(steps.shapes) + capture.replayed == 30
    assert 2 <= capture.captured < len(steps.shapes) < 17


def test_shapes_are_few_and_not_much_larger() -> None:
    assert [roomy(n) for n in (1, 3, 8, 9, 16, 17, 33, 64, 65, 129, 256)] == [
        *(1, 3, 8, 10, 16, 20, 40, 64, 80, 160, 256)
    ]
    sizes = [roomy(n) for n in range(1, 2_000)]
    assert sizes == sorted(sizes) and len(set(sizes)) == 40
    assert all(n <= size <= 1.25 * n for n, size in enumerate(sizes, 1))


def test_a_step_is_the_same_whatever_is_padded(task: Task) -> None:
    """Law 3: sequences of one length, none of whose batches is padded, and with padding."""
    shape, config = default_model(task, **SHAPE), replace(CONFIG, optimizer="adamw", clip=1e9)
    lengths = task.train.lengths
    sequences = np.flatnonzero(lengths == np.bincount(lengths).argmax())[:5]
    found = []
    for rows, width in ((5, int(lengths[sequences[0]])), (8, 52)):
        torch.manual_seed(0)
        model = Decoder(shape)
        options: dict[str, Any] = {"bfloat16": False, "clip": 1e9, "capture": None}
        steps = Replayed(model, _optimizers(model, config, True), task.train, **options)
        where = torch.zeros(2, rows, dtype=torch.int64)
        where[0, :5] = torch.from_numpy(task.train.offsets[sequences])
        where[1, :5] = torch.from_numpy(lengths[sequences])
        steps._step(where, width)
        found.append((float(steps.bits), [p.grad for p in model.parameters()]))
    (loss, gradients), (padded_loss, padded) = found
    assert padded_loss == pytest.approx(loss, rel=1e-6)
    for one, other in zip(gradients, padded, strict=True):
        assert isinstance(one, Tensor) and one.abs().max() > 1e-4
        torch.testing.assert_close(other, one, rtol=0, atol=1e-6)


def test_what_cannot_be_captured_is_taken_step_by_step(task: Task) -> None:
    shape, capture = default_model(task, **SHAPE), Failing()
    with pytest.warns(UserWarning, match=r"cannot be captured on cpu \(operation not perm") as told:
        model, *_ = replayed(task, CONFIG, shape, capture)
    assert len(told) == capture.captured == 1
    expected, *_ = replayed(task, CONFIG, shape, StandIn())
    for name, weight in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)


def test_a_gradient_that_is_not_finite_shows_in_the_loss(task: Task) -> None:
    config = replace(CONFIG, optimizer="adamw", learning_rate=1e30, warmup=0.0)
    *_, losses = replayed(task, config, default_model(task, **SHAPE), StandIn())
    assert math.isfinite(losses[0]) and all(math.isnan(loss) for loss in losses[3:])


# With `train`, on an accelerator that is pretended


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Steps are captured by a stand-in."""
    capture = StandIn()
    monkeypatch.setattr(module, "CudaGraphs", lambda device: capture)

    def to(model: Decoder, device: torch.device | str) -> Decoder:
        there = torch.device(device).type == "cuda"
        return on_accelerator(model, learning=True) if there else model  # type: ignore[return-value]

    monkeypatch.setattr(Decoder, "to", to)
    return capture


def test_training_on_an_accelerator_needs_nothing_of_the_cpu(
    task: Task, accelerator: StandIn
) -> None:
    shape = default_model(task, **SHAPE)
    plain, curves = train(task, config=CONFIG, model=shape, seed=3)
    with Pretended():
        away, same = train(task, config=CONFIG, model=shape, seed=3, device=DEVICE)
        assert away.device == DEVICE
        weights = {name: x.cpu() for name, x in away.state_dict().items()}
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-5)
    assert accelerator.replayed > 5
    for name in curves.columns:
        if name in ("loss", "cross_entropy"):
            assert same[name].to_list() == pytest.approx(curves[name].to_list(), rel=1e-4)
        else:
            assert same[name].equals(curves[name])


def test_no_step_waits_for_the_device(task: Task, accelerator: StandIn) -> None:
    with Pretended() as pretended:
        model = Decoder(default_model(task, **SHAPE)).to(DEVICE)
        optimizers = _optimizers(model, CONFIG, captured=True)
        before = pretended.looks
        options: dict[str, Any] = {"bfloat16": False, "clip": 1.0, "capture": accelerator}
        steps = Replayed(model, optimizers, task.train, **options)
        for number, batch in enumerate(islice(shuffled(task.train.lengths, 300, 0), 30)):
            bits = steps(batch, _rates(number, CONFIG))
        assert pretended.looks == before
        assert 1 < float(bits) < 4


LONGER = replace(CONFIG, steps=130, checkpoint_every=40, evaluate_every=60)


class Stopped(Exception):
    pass


def test_a_training_that_was_stopped_there_goes_on_to_the_same_bytes(
    task: Task, accelerator: StandIn, tmp_path: Path
) -> None:
    told: list[int] = []

    def watch(event: Event) -> None:
        told.append(event.done)
        if told == [40, 50, 60, 80, 100]:
            raise Stopped

    given: dict[str, Any] = {"config": LONGER, "model": default_model(task, **SHAPE)}
    with Pretended():
        whole, curves = train(task, **given, device=DEVICE)
        with pytest.raises(Stopped):
            train(task, **given, device=DEVICE, out=tmp_path, watch=watch)
        with pytest.raises(AnamorphError, match="checkpoint of another training"):
            train(task, **given, device="cpu", out=tmp_path)  # where numbers differ by rounding
        resumed, again = train(task, **given, device=DEVICE, out=tmp_path, watch=watch)
        assert told[5:] == [100, 120, 130], "from the checkpoint of step 80 on"
        assert again.equals(curves)
        for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(one, other)
        assert Decoder.load(tmp_path / "model.safetensors").device == torch.device("cpu")


def test_nothing_is_written_after_a_gradient_that_was_not_finite(
    task: Task, accelerator: StandIn, tmp_path: Path
) -> None:
    config = replace(LONGER, optimizer="adamw", learning_rate=1e30, warmup=0.0)
    for every in (3, 200):
        config = replace(config, checkpoint_every=every, evaluate_every=every)
        with Pretended(), pytest.raises(AnamorphError, match="gradient is not finite"):
            shape = default_model(task, **SHAPE)
            train(task, config=config, model=shape, out=tmp_path, device=DEVICE)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "32-true"), ((8, 0), "bf16-mixed")])
def test_the_device_says_what_auto_is(
    capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    auto = TrainingConfig(precision="auto")
    assert resolved(auto, torch.device("cuda", 0)).precision == precision
    assert resolved(auto, torch.device("mps")).precision == "32-true"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert resolved(auto, torch.device("cpu")).precision == "bf16-mixed"
    assert (
        resolved(TrainingConfig(precision="32-true"), torch.device("cuda")).precision == "32-true"
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_on_a_gpu_graphs_give_what_the_cpu_gives(
    task: Task, optimizer: Any, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    given: dict[str, Any] = {"model": default_model(task, **SHAPE)}
    given["config"] = replace(LONGER, optimizer=optimizer)
    plain, _ = train(task, **given)
    one, curves = train(task, **given, device="cuda")

    def stop(event: Event) -> None:
        if event.done == 100:
            raise Stopped

    with pytest.raises(Stopped):
        train(task, **given, device="cuda", out=tmp_path, watch=stop)
    again, same = train(task, **given, device="cuda", out=tmp_path)
    assert not [w for w in recwarn if "captur" in str(w.message)]
    assert same.equals(curves)
    for name, weight in plain.state_dict().items():
        assert torch.equal(one.state_dict()[name], again.state_dict()[name])
        torch.testing.assert_close(one.state_dict()[name].cpu(), weight, rtol=0, atol=1e-2)
