"""Zero, mean and resampling: against NumPy, whatever the batch."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import anamorph as am
from anamorph.models.base import Batch, Context
from anamorph.models.sites import Site
from anamorph.simplifications import check_simplification, find_simplification, fit, parse
from anamorph.simplifications.statistics.reservoir import splitmix64
from anamorph.tasks import Task
from plain import small_model

Zero, Mean, Resample = map(find_simplification, ("zero", "mean", "resample"))


@pytest.fixture
def points() -> Tensor:
    return torch.randn(90, 5, generator=torch.Generator().manual_seed(0)) + 3


@pytest.mark.parametrize("made", [Zero(), Mean(), Resample(), Resample(seed=3, reservoir=20)])
def test_ablations_keep_every_law(made: am.Simplification) -> None:
    check_simplification(made)


def test_zero_and_mean(points: Tensor) -> None:
    x = torch.randn(2, 3, 5)
    assert not Zero().fit(points)(x).any()
    mean = Mean().fit(points)(x)
    np.testing.assert_allclose(mean[1, 2], points.double().numpy().mean(axis=0), rtol=1e-6)
    assert torch.equal(mean[0, 0].expand(2, 3, 5), mean)
    with pytest.raises(am.AnamorphError, match="mean: there are no points"):
        Mean().fit(points[:0])


def drawn_by_hand(tokens: list[int], seed: int, count: int) -> int:
    """Which point: SplitMix64 over the tokens so far, in Python's whole numbers."""

    def mixed(z: int) -> int:
        z %= 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    total = sum(mixed(mixed(mixed(i) + seed) ^ t) for i, t in enumerate(tokens, start=1))
    digest = mixed(total)
    return (digest - 2**64 if digest >= 2**63 else digest) % count


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_which_point_is_drawn_follows_from_the_tokens_so_far(points: Tensor, seed: int) -> None:
    fitted = Resample(seed=seed, reservoir=70).fit(points)
    order = np.argsort(splitmix64(seed, 0, len(points)))[:70]
    kept = points[torch.from_numpy(np.sort(order))]
    tokens = torch.randint(0, 9, (4, 12), generator=torch.Generator().manual_seed(1))
    context = Context(tokens, torch.ones_like(tokens, dtype=torch.bool))
    found = fitted.apply(torch.zeros(4, 12, 5), context=context)
    for row in range(4):
        for place in range(12):
            which = drawn_by_hand(tokens[row, : place + 1].tolist(), seed, 70)
            assert torch.equal(found[row, place], kept[which])


def test_points_are_drawn_evenly() -> None:
    fitted = Resample(reservoir=8).fit(torch.arange(8.0)[:, None])
    tokens = torch.randint(0, 3, (200, 40), generator=torch.Generator().manual_seed(1))
    context = Context(tokens, torch.ones_like(tokens, dtype=torch.bool))
    found = fitted.apply(torch.zeros(200, 40, 1), context=context)[:, 10:].flatten().int()
    counts = torch.bincount(found, minlength=8) / len(found)
    assert (counts - 1 / 8).abs().max() < 0.02  # four standard errors of 6,000 draws
    assert len(set(map(tuple, found.view(200, -1).tolist()))) == 200


def test_all_sites_draw_the_same_position_of_the_data(task: Task) -> None:
    model = small_model(task)
    random = np.random.default_rng(0)
    data = [Batch.whole(torch.from_numpy(random.integers(0, 5, (9, 11)))) for _ in range(3)]
    (proxy,) = parse("resample(reservoir=40)@*.*.{query,key}")
    fitted: Any = fit(model, [proxy], {"train": data})[proxy]  # type: ignore[list-item,index]
    batch = data[0]
    context = Context(batch.tokens, batch.mask)
    sources: list[Tensor] = []
    with torch.inference_mode():
        kinds = [(layer, kind) for layer in range(2) for kind in ("query", "key")]
        for layer, kind in kinds:
            site = Site(layer, 1, kind)
            every = torch.cat([model.run(b, record=[site]).recorded[site][0] for b in data])
            made = fitted.by_site[site].apply(torch.zeros_like(every[:9]), context=context)
            same = (made[:, :, None] - every.flatten(0, 1)).abs().amax(-1)
            assert same.amin(-1).max() < 1e-6
            sources.append(same < 1e-6)  # [batch, position, point of the data]
    assert torch.stack(sources).all(0).any(-1).all()
