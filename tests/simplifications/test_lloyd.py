"""Lloyd's algorithm of a device, run on the CPU, against scikit-learn's."""

import warnings

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans as ScikitKMeans
from threadpoolctl import threadpool_limits

from anamorph.simplifications import lloyd as module
from anamorph.simplifications.lloyd import lloyd, start_of


def of_scikit_learn(x: NDArray[np.float64], start: str | NDArray[np.float64], k: int, seed: int):
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search = ScikitKMeans(k, init=start, n_init=1, max_iter=100, random_state=seed)
        return search.fit(x).cluster_centers_


def problem(seed: int) -> tuple[NDArray[np.float64], int]:
    """Points at many scales and offsets, a third of them repeated; sometimes a cluster a point."""
    rng = np.random.default_rng(seed)
    count, dim = int(rng.integers(5, 600)), int(rng.integers(1, 9))
    x = rng.normal(size=(count, dim)) * rng.uniform(0.1, 100) + rng.choice([0, 1, 1e3])
    if seed % 3 == 0:
        x = x[rng.integers(0, max(2, count // 3), count)]
    distinct = len(np.unique(x, axis=0))
    return x, distinct if seed % 5 == 0 else int(rng.integers(1, min(distinct, 60) + 1))


@pytest.mark.parametrize("seed", range(40))
def test_the_centres_are_those_of_scikit_learn(seed: int) -> None:
    x, k = problem(seed)
    start = torch.from_numpy(x[start_of(x, k, seed)])
    found = lloyd(torch.from_numpy(x), start, 100).numpy()
    expected = of_scikit_learn(x, "k-means++", k, seed)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * np.abs(x).max())


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("astray", [1, 3])
def test_empty_clusters_move_as_scikit_learns(
    seed: int, astray: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Centres that begin where no point is."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(5_000, 3))
    start = x[:6].copy()
    start[rng.permutation(6)[:astray]] += 1e3
    moved = []
    monkeypatch.setattr(
        module, "_relocated", lambda *given, own=module._relocated: moved.append(1) or own(*given)
    )
    found = lloyd(torch.from_numpy(x), torch.from_numpy(start), 100).numpy()
    np.testing.assert_allclose(found, of_scikit_learn(x, start, 6, 0), rtol=0, atol=1e-9)
    assert moved


def test_a_cluster_that_loses_its_only_point_gets_what_scikit_learn_gives_it() -> None:
    """One iteration: the empty cluster takes the point of a cluster that has no other."""
    x = np.array([[0.0], [0.1], [0.2], [9.0]])
    for start in ([[0.1], [8.0], [50.0]], [[50.0], [0.1], [8.0]], [[8.0], [50.0], [0.1]]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            search = ScikitKMeans(3, init=np.array(start), n_init=1, max_iter=1).fit(x)
        found = lloyd(torch.from_numpy(x), torch.tensor(start, dtype=torch.float64), 1)
        np.testing.assert_allclose(found.numpy(), search.cluster_centers_, rtol=0, atol=1e-12)


def test_in_float32_it_is_near() -> None:
    x = np.random.default_rng(0).normal(size=(2_000, 8)) + 3
    start = torch.from_numpy(x[start_of(x, 20, 0)])
    found = lloyd(torch.from_numpy(x).float(), start.float(), 100)
    assert found.dtype == torch.float32
    error = lambda centers: np.square(x[:, None] - centers).sum(-1).min(1).mean()  # noqa: E731
    expected = of_scikit_learn(x, "k-means++", 20, 0)
    assert error(found.double().numpy()) == pytest.approx(error(expected), rel=1e-3)
