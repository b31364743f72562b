"""Statistics of parts of a stream, put together, are those of the whole."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch

from anamorph.errors import AnamorphError
from anamorph.simplifications import PCA, SVD, KMeans, Simplification
from anamorph.simplifications.statistics import blocks
from anamorph.simplifications.statistics.base import Mergeable, Several
from anamorph.simplifications.statistics.moments import Moments
from anamorph.simplifications.statistics.reservoir import Reservoir
from anamorph.simplifications.statistics.squares import Squares

CUTS = [[0, 1000], [0, 1, 700, 700, 1000], [0, 64, 128, 999, 1000], [0, 333, 666, 1000]]


@pytest.fixture
def stream() -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.normal(size=(1000, 6)) @ rng.normal(size=(6, 6)) + 100.0)


def parts_of(
    whole: Mergeable, stream: torch.Tensor, cuts: list[int], *, sent: bool = False
) -> Mergeable:
    """Parts of a stream put together; or those that were sent from elsewhere."""
    parts = []
    for start, stop in pairwise(cuts):
        parts.append(whole.part(start))
        for chunk in torch.split(stream[start:stop], 37):
            parts[-1].update(chunk)
    if sent:
        parts = [pickle.loads(pickle.dumps(part)) for part in parts]
    for part in parts[1:]:
        parts[0].merge(part)
    return parts[0]


@pytest.mark.parametrize("cuts", CUTS)
def test_moments(stream: torch.Tensor, cuts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 64)
    merged = parts_of(Moments(6), stream, cuts)
    assert isinstance(merged, Moments)
    x = stream.numpy()
    assert merged.count == 1000
    np.testing.assert_allclose(merged.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(merged.scatter, np.cov(x.T, ddof=0) * 1000, rtol=1e-9)
    merged.update(stream[:10])  # it goes on
    assert merged.count == 1010
    np.testing.assert_allclose(merged.mean, np.concatenate([x, x[:10]]).mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("cuts", CUTS)
def test_squares(stream: torch.Tensor, cuts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 64)
    merged = parts_of(Squares(6), stream, cuts)
    assert isinstance(merged, Squares)
    np.testing.assert_allclose(merged.norms, np.linalg.norm(stream.numpy(), axis=0), rtol=1e-12)


@pytest.mark.parametrize("cuts", CUTS)
def test_parts_from_elsewhere_are_merged_to_the_same_bytes(
    stream: torch.Tensor, cuts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 64)
    for kind in (Moments, Squares):
        here, sent = (parts_of(kind(6), stream, cuts, sent=sent) for sent in (False, True))
        if isinstance(here, Squares) and isinstance(sent, Squares):
            assert torch.equal(here.norms, sent.norms)
        if isinstance(here, Moments) and isinstance(sent, Moments):
            assert here.count == sent.count == 1000
            assert torch.equal(here.mean, sent.mean) and torch.equal(here.scatter, sent.scatter)


def test_squares_do_not_depend_on_the_updates(stream: torch.Tensor) -> None:
    whole, singly = Squares(6), Squares(6)
    whole.update(stream.repeat(5, 1))
    for chunk in torch.split(stream.repeat(5, 1), 7):
        singly.update(chunk)
    assert torch.equal(whole.norms, singly.norms)


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("capacity", [5, 100, 999, 1000, 2000])
def test_a_sample_is_the_same_to_the_byte(
    stream: torch.Tensor, cuts: list[int], capacity: int
) -> None:
    whole = Reservoir(capacity=capacity, seed=3)
    whole.update(stream)
    merged = parts_of(Reservoir(capacity=capacity, seed=3), stream, cuts)
    assert isinstance(merged, Reservoir)
    assert torch.equal(merged.points(), whole.points())
    assert merged.seen == 1000


def hash_of(seed: int, index: int) -> int:
    """SplitMix64 in whole numbers of any size."""
    mask = 2**64 - 1
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("capacity", [5, 100, 999, 1000, 2000])
@pytest.mark.parametrize("known", [False, True])
def test_a_sample_is_the_points_with_the_smallest_hashes(
    stream: torch.Tensor, cuts: list[int], capacity: int, known: bool
) -> None:
    """Wherever its parts were seen, and whether they know how long the stream is or not."""
    smallest = sorted(range(1000), key=lambda index: hash_of(3, index))[:capacity]
    expected = stream[sorted(smallest)]
    empty = Reservoir(capacity=capacity, seed=3)
    if known:
        empty.foresee(1000)
        kept = 0
        for start, stop in pairwise(cuts):
            part = empty.part(start)
            part.update(stream[start:stop])
            kept += len(part.points())
        assert kept == min(capacity, 1000)
    for sent in (False, True):
        merged = parts_of(empty, stream, cuts, sent=sent)
        assert isinstance(merged, Reservoir)
        assert torch.equal(merged.points(), expected)


def test_a_part_keeps_nothing_that_could_not_enter_what_came_before(stream: torch.Tensor) -> None:
    first = Reservoir(capacity=50, seed=1)
    first.update(stream[:500])
    part = first.part(500)
    part.update(stream[500:550])
    assert len(part.points()) < 15  # one in ten would enter
    first.merge(part)
    whole = Reservoir(capacity=50, seed=1)
    whole.update(stream[:550])
    assert torch.equal(first.points(), whole.points())


def test_parts_of_a_sample_must_follow_each_other(stream: torch.Tensor) -> None:
    one, other = Reservoir(capacity=9, seed=0), Reservoir(capacity=9, seed=0, start=50)
    one.update(stream[:40])
    with pytest.raises(AnamorphError, match=r"begins at point 50 cannot follow.*before point 40"):
        one.merge(other)


@pytest.mark.parametrize(
    "simplification",
    [SVD(rank=2), PCA(rank=2), KMeans(clusters=4, reservoir=90), SVD(rank=3) + KMeans(clusters=5)],
    ids=str,
)
def test_what_is_learnt_of_parts(simplification: Simplification, stream: torch.Tensor) -> None:
    statistic = simplification.statistic(6)
    assert isinstance(statistic, Mergeable)
    merged = simplification.clone().learn(parts_of(statistic, stream, [0, 300, 1000]))
    expected = simplification.fit(stream)
    torch.testing.assert_close(merged(stream), expected(stream), rtol=1e-9, atol=1e-9)


def test_what_cannot_be_merged_says_so() -> None:
    class Plain:
        key = "plain"

        def update(self, x: torch.Tensor) -> None:
            raise NotImplementedError

    with pytest.raises(AnamorphError, match="Plain cannot be put together from parts"):
        Several(Plain(), None).part(3)
