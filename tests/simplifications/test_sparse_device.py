"""Coders as a device trains them, run on the CPU, against the training of the CPU."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from anamorph.simplifications import sparse
from anamorph.simplifications.sparse import Parts, Trainer
from anamorph.simplifications.sparse_device import DeviceTrainer

READ, WRITTEN, FEATURES, K = 16, 10, 60, 5


def begun(tied: bool) -> tuple[Parts, Tensor, Tensor]:
    """Weights, a third of whose features never come above zero, and points."""
    draw = torch.Generator().manual_seed(1)
    truth = normalize(torch.randn(24, READ, generator=draw), dim=1)
    x = 4 * (torch.rand(300, 24, generator=draw) < 0.15).float() @ truth + 2
    y = x if tied else (x @ torch.randn(READ, WRITTEN, generator=draw)).tanh()
    encoder = normalize(torch.randn(FEATURES, READ, generator=draw), dim=1)
    bias = torch.zeros(FEATURES).index_fill(0, torch.arange(40, FEATURES), -12.0)
    decoder = encoder.clone() if tied else torch.randn(FEATURES, WRITTEN, generator=draw) / 10
    skip = None if tied else torch.zeros(WRITTEN, READ)
    return Parts(encoder, bias, decoder, y.mean(dim=0), skip), x, y


def trained(kind: type[Trainer], tied: bool, steps: int, products: torch.dtype | None = None):
    parts, x, y = begun(tied)
    trainer = kind(parts, K, tied, float((y - y.mean(dim=0)).square().sum(dim=1).mean()))
    if isinstance(trainer, DeviceTrainer):
        trainer.products = products or torch.float32
    order = torch.Generator().manual_seed(2)
    errors = []
    for _ in range(steps):
        some = torch.randperm(len(x), generator=order)[:200]
        errors.append(float(trainer.step(x[some], y[some], 3e-3, 1)))
    return trainer, torch.tensor(errors)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dead_after", [4, 100])
@pytest.mark.parametrize("chunk", [64, 4096])
def test_steps_are_those_of_the_cpu(
    tied: bool, dead_after: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse, "DEAD_AFTER", dead_after)
    monkeypatch.setattr(DeviceTrainer, "chunk", chunk)
    (ours, errors), (theirs, expected) = (
        trained(kind, tied, 20) for kind in (DeviceTrainer, Trainer)
    )
    assert (ours.idle >= 4).sum() > 5, "there should be dead features"
    assert torch.equal(ours.idle, theirs.idle)
    torch.testing.assert_close(errors, expected, rtol=1e-4, atol=0)
    for made, wanted, start in zip(ours.parts, theirs.parts, begun(tied)[0], strict=True):
        if wanted is not None and start is not None:
            assert (wanted - start).abs().max() > 1e-2
            torch.testing.assert_close(made, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_in_bfloat16_as_much_is_explained(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "DEAD_AFTER", 20)
    _, expected = trained(Trainer, tied, 400)
    trainer, errors = trained(DeviceTrainer, tied, 400, torch.bfloat16)
    assert expected[-20:].mean() < 0.6 * expected[:5].mean()
    assert abs(errors[-20:].mean() - expected[-20:].mean()) < 0.01
    assert all(part is None or part.dtype == torch.float32 for part in trainer.parts)
    state = trainer.optimizer.state.values()
    assert {x.dtype for moments in state for x in moments.values()} == {torch.float32}
