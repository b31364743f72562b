"""K-means and the reservoir it is fitted to, against scikit-learn and brute force."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import chisquare
from sklearn.cluster import KMeans as ScikitKMeans
from threadpoolctl import threadpool_limits

from anamorph.errors import AnamorphError
from anamorph.simplifications import KMeans
from anamorph.simplifications.statistics.reservoir import Reservoir, splitmix64


def normal(points: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(points, dim)))


def test_splitmix64_gives_the_published_outputs() -> None:
    # For the seed 1234567, from Rosetta Code, "Pseudo-random numbers/Splitmix64".
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splitmix64(1234567, 0, 5).tolist() == expected
    assert splitmix64(1234567, 2, 2).tolist() == expected[2:4]


def test_the_reservoir_keeps_the_smallest_hashes_in_stream_order() -> None:
    x = normal(5000, 3)
    by_hash = sorted(range(5000), key=lambda i: int(splitmix64(7, i, 1)[0]))
    expected = x[sorted(by_hash[:100])]
    for size in (1, 33, 5000):
        reservoir = Reservoir(capacity=100, seed=7)
        for piece in torch.split(x, size):
            reservoir.update(piece)
        assert torch.equal(reservoir.points(), expected)
        assert reservoir.seen == 5000


def test_the_reservoir_is_bounded_and_can_be_read_midway() -> None:
    reservoir = Reservoir(capacity=10, seed=0)
    assert len(reservoir.points()) == 0
    reservoir.update(normal(4, 2))
    assert torch.equal(reservoir.points(), normal(4, 2))
    for seed in range(200):
        reservoir.update(normal(5, 2, seed))
        assert len(reservoir._points) <= 12
    assert reservoir.points().shape == (10, 2)


def test_what_was_read_from_the_reservoir_stays() -> None:
    reservoir = Reservoir(capacity=10, seed=0)
    reservoir.update(normal(10, 2))
    points = reservoir.points()
    reservoir.update(normal(500, 2, seed=1))
    assert torch.equal(points, normal(10, 2))


def test_the_reservoir_takes_the_widest_dtype_of_the_stream() -> None:
    reservoir = Reservoir(capacity=50, seed=0)
    reservoir.update(normal(4, 2).float())
    reservoir.update(normal(4, 2, seed=1))
    expected = torch.cat([normal(4, 2).float(), normal(4, 2, seed=1)])
    assert torch.equal(reservoir.points(), expected)


def test_the_reservoir_is_uniform() -> None:
    kept = np.zeros(20)
    for seed in range(2000):
        reservoir = Reservoir(capacity=5, seed=seed)
        reservoir.update(torch.arange(20)[:, None])
        kept[reservoir.points()[:, 0].long().numpy()] += 1
    assert chisquare(kept).pvalue > 0.01


def test_the_reservoir_copies_what_it_keeps() -> None:
    x = normal(3, 2)
    reservoir = Reservoir(capacity=5, seed=0)
    reservoir.update(x)
    x.zero_()
    assert torch.equal(reservoir.points(), normal(3, 2))


def test_the_centres_are_scikit_learns() -> None:
    x = normal(400, 4)
    expected = ScikitKMeans(7, n_init=1, max_iter=100, random_state=3).fit(x.numpy())
    kmeans = KMeans(clusters=7, seed=3).fit(x)
    np.testing.assert_allclose(kmeans.centers_, expected.cluster_centers_, rtol=1e-12)


def test_every_point_goes_to_its_nearest_centre() -> None:
    kmeans = KMeans(clusters=9).fit(normal(300, 5))
    new = normal(600, 5, seed=1).reshape(2, 3, 100, 5)
    nearest = cdist(new.reshape(-1, 5), kmeans.centers_).argmin(axis=1)
    expected = kmeans.centers_[torch.from_numpy(nearest)].reshape(new.shape)
    assert torch.equal(kmeans(new), expected)
    assert torch.equal(kmeans(new.float()), expected.float())


def test_well_separated_clusters_are_found() -> None:
    corners = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])
    x = corners.repeat_interleave(50, dim=0) + normal(150, 2).float()
    found = KMeans(clusters=3).fit(x).centers_
    means = x.double().reshape(3, 50, 2).mean(dim=1)
    order = cdist(means, found).argmin(axis=1)
    torch.testing.assert_close(found[torch.from_numpy(order)], means)


def test_as_many_clusters_as_distinct_points_reproduce_them() -> None:
    distinct = normal(40, 3).float()
    x = distinct[torch.arange(200) % 40]
    assert torch.equal(KMeans(clusters=40).fit(x)(x), x)


def test_points_that_share_a_coordinate_are_told_apart_by_the_others() -> None:
    x = normal(60, 3)[torch.arange(120) % 60]
    x[:, 0] = 1.0
    assert torch.equal(KMeans(clusters=60).fit(x)(x), x)
    with pytest.raises(AnamorphError, match="Of 120 points seen, 60 distinct ones"):
        KMeans(clusters=61).fit(x)
    expected = ScikitKMeans(7, n_init=1, max_iter=100, random_state=0).fit(x.numpy())
    np.testing.assert_allclose(KMeans(clusters=7).fit(x).centers_, expected.cluster_centers_)


def test_a_common_offset_does_not_confuse_the_centres() -> None:
    # In float32 |c|² - 2x·c at 1e4 has steps of 8 or more: far coarser than these distances.
    x = 1e4 + torch.arange(50, dtype=torch.float32)[:, None].repeat(1, 3)
    assert torch.equal(KMeans(clusters=50).fit(x)(x), x)


def test_the_fit_does_not_depend_on_the_number_of_threads() -> None:
    x = normal(20_000, 8)
    centers = []
    for threads in (1, 2):
        with threadpool_limits(limits=threads):
            centers.append(KMeans(clusters=20).fit(x).centers_)
    assert torch.equal(*centers)


def test_clusters_above_points() -> None:
    x = normal(5, 2)[torch.tensor([0, 1, 2, 2, 2])]
    with pytest.raises(AnamorphError, match="Of 5 points seen, 3 distinct ones"):
        KMeans(clusters=4).fit(x)
    with pytest.raises(AnamorphError, match="clusters above points"):
        KMeans(clusters=1).fit(torch.empty(0, 2))
    with pytest.raises(AnamorphError, match="Only 10 points are kept"):
        KMeans(clusters=11, reservoir=10).fit(x)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"clusters": 0}, "clusters must be a whole number, 1 or more; got 0"),
        ({"clusters": -2}, "clusters must be"),
        ({"clusters": 2.0}, "clusters must be"),
        ({"clusters": 2, "seed": -1}, "seed must be a whole number, 0 or more"),
        ({"clusters": 2, "seed": 2**32}, "seed must be below"),
        ({"clusters": 2, "reservoir": 0}, "reservoir must be"),
    ],
)
def test_hyper_parameters_that_make_no_sense(given: dict[str, int], message: str) -> None:
    with pytest.raises(AnamorphError, match=message):
        KMeans(**given).fit(normal(20, 2))
