"""Sparse coders that are trained here: gradients by autograd, a truth that is found again."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from anamorph.errors import AnamorphError
from anamorph.simplifications import check_simplification, sparse
from anamorph.simplifications.methods.topk import TopKSAE
from anamorph.simplifications.sparse import DEAD_SHARE, Parts, Trainer

READ, FEATURES, K, POINTS = 10, 40, 5, 64


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_autograd(parts: Parts, x: Tensor, y: Tensor, dead: Tensor, tied: bool, variance: float):
    """The loss written with dense matrices, and its gradient."""
    parts = Parts(*(part.double().requires_grad_() for part in parts))
    before = (
        x.double() - parts.bias if tied else x.double()
    ) @ parts.encoder.T + parts.encoder_bias

    def only(before: Tensor, k: int) -> Tensor:
        kept = before.topk(k).indices
        return torch.zeros_like(before).scatter(-1, kept, before.gather(-1, kept).relu())

    error = only(before, K) @ parts.decoder + parts.bias - y
    loss = error.square().sum() / variance
    total = loss
    if len(dead):
        explained = only(before[:, dead], min(len(dead), READ // 2)) @ parts.decoder[dead]
        total = loss + DEAD_SHARE * (explained + error.detach()).square().sum() / variance
    return loss.item(), Parts(*torch.autograd.grad(total, parts))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dead", [[], [3], [3, 8, 20, 21, 22, 30]])
@pytest.mark.parametrize("by_zeros", [True, False])
def test_gradients_are_those_of_autograd(
    tied: bool, dead: list[int], by_zeros: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_zeros:  # as where torch cannot multiply sparse matrices
        monkeypatch.setattr(sparse, "SPARSE", False)
    draw, written = random(), READ if tied else 7
    shapes = ((FEATURES, READ), (FEATURES,), (FEATURES, written), (written,))
    parts = Parts(*(torch.randn(shape, generator=draw) for shape in shapes))
    x = torch.randn(POINTS, READ, generator=draw)
    y = x if tied else torch.randn(POINTS, written, generator=draw)
    which = torch.tensor(dead, dtype=torch.int64)
    expected_loss, expected = by_autograd(parts, x, y, which, tied, 3.0)
    chunk = Trainer(parts, K, tied, 3.0).gradients(x, y, which)
    assert chunk.loss == pytest.approx(expected_loss, rel=1e-5)
    for made, wanted in zip(chunk.gradient, expected, strict=True):
        assert wanted.abs().max() > 1
        torch.testing.assert_close(made.double(), wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max())


def test_workers_change_nothing() -> None:
    """Chunks are fixed, and their gradients are summed in their order."""
    draw = random()
    x = torch.randn(2_000, READ, generator=draw)
    made = []
    for workers in (1, 3):
        start = random(1)
        shapes = ((FEATURES, READ), (FEATURES,), (FEATURES, READ), (READ,))
        trainer = Trainer(Parts(*(torch.randn(s, generator=start) for s in shapes)), K, True, 9.0)
        for _ in range(3):
            trainer.step(x, x, 0.01, workers)
        made.append(trainer.parts)
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))


def sums_of_directions(points: int, truth: Tensor, draw: torch.Generator) -> Tensor:
    on = torch.rand(points, len(truth), generator=draw) < 3 / len(truth)
    return 4 * (torch.rand(points, len(truth), generator=draw) + 0.5) * on @ truth + 7


def test_directions_that_data_are_made_of_are_found() -> None:
    draw = random(5)
    truth = normalize(torch.randn(24, 32, generator=draw), dim=1)
    sae = TopKSAE(features=32, k=4, passes=30, batch=256, rate=4e-3)
    sae.fit(sums_of_directions(8_000, truth, draw))
    points = sums_of_directions(1_000, truth, draw)
    made = sae(points)
    unexplained = (made - points).square().sum() / (points - points.mean(dim=0)).square().sum()
    assert unexplained < 0.1
    closest = (normalize(sae.decoder_, dim=1) @ truth.T).max(dim=0).values
    assert closest.median() > 0.95
    active = (points - sae.bias_) @ sae.encoder_ + sae.encoder_bias_
    kept = active.topk(4).indices
    by_hand = torch.zeros_like(active).scatter(-1, kept, active.gather(-1, kept).relu())
    torch.testing.assert_close(made, by_hand @ sae.decoder_ + sae.bias_, rtol=1e-4, atol=1e-4)


def test_a_scale_of_the_data_changes_nothing_but_the_scale() -> None:
    points = torch.randn(600, 6, generator=random(2)) + 2
    one, other = (TopKSAE(features=12, k=3, batch=64).fit(scale * points) for scale in (1, 64))
    torch.testing.assert_close(64 * one(points), other(64 * points), rtol=1e-3, atol=1e-2)


def test_it_keeps_the_laws() -> None:
    check_simplification(TopKSAE(features=12, k=3, batch=64))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"features": 4, "k": 5}, "k must be at most the 4 features"),
        ({"features": 0, "k": 1}, "features must be a whole number, 1 or more"),
        ({"features": 4, "k": 2, "rate": 0}, "rate must be a number above 0"),
        ({"features": 4, "k": 2, "pool": 0}, "pool must be a whole number"),
    ],
)
def test_settings_that_make_no_sense(given: dict[str, int], message: str) -> None:
    with pytest.raises(AnamorphError, match=message):
        TopKSAE(**given).validate()
