"""Chains, against the stages fitted by hand on mapped data."""

import numpy as np
import pytest
import torch

from anamorph.errors import AnamorphError
from anamorph.simplifications import PCA, SVD, Chain, KMeans, OneHot


@pytest.fixture
def points() -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.normal(size=(3000, 6)) @ rng.normal(size=(6, 6)) + 1.0)


def test_a_later_k_means_sees_what_it_would_see_of_the_mapped_stream(points: torch.Tensor) -> None:
    chain = (SVD(rank=3) + KMeans(clusters=8, reservoir=500, seed=4)).fit(points)
    svd = SVD(rank=3).fit(points)
    kmeans = KMeans(clusters=8, reservoir=500, seed=4).fit(svd(points))
    torch.testing.assert_close(chain.stages_[1].centers_, kmeans.centers_, rtol=0, atol=0)
    assert torch.equal(chain(points), kmeans(svd(points)))


def test_affine_stages_multiply_out(points: torch.Tensor) -> None:
    chain = (PCA(rank=4) + SVD(rank=2)).fit(points)
    affine = chain.affine()
    assert affine is not None
    matrix, bias = affine
    by_hand = SVD(rank=2).fit(PCA(rank=4).fit(points)(points))
    expected = by_hand(PCA(rank=4).fit(points)(points))
    torch.testing.assert_close(points @ matrix + bias, expected)
    torch.testing.assert_close(chain(points), expected)
    assert (SVD(rank=4) + KMeans(clusters=2)).fit(points).affine() is None


def test_chains_flatten_and_do_not_fit_their_stages_in_place(points: torch.Tensor) -> None:
    svd = SVD(rank=3)
    chain = svd + PCA(rank=2) + KMeans(clusters=4)
    assert [part.name for part in chain.parts()] == ["svd", "pca", "kmeans"]
    chain.fit(points)
    assert not hasattr(svd, "components_")


def test_the_size_is_that_of_the_only_sized_stage() -> None:
    assert (SVD(rank=3) + KMeans(clusters=4)).size is None
    assert Chain(stages=(OneHot(), SVD(rank=3))).size == 3.0


def test_stages_need_a_kind_of_site_in_common() -> None:
    with pytest.raises(AnamorphError, match=r"no kind of site in common.*joined by ';'"):
        (SVD(rank=3) + OneHot()) @ "0.*.key"
    with pytest.raises(AnamorphError, match="two stages or more"):
        Chain(stages=(SVD(rank=3),)) @ "0.*.key"


def test_a_stage_that_does_not_suit_the_data_is_an_error(points: torch.Tensor) -> None:
    with pytest.raises(AnamorphError, match="rank above dimension"):
        (SVD(rank=3) + PCA(rank=7)).fit(points)
    with pytest.raises(AnamorphError, match="clusters above points"):
        # Three centres leave three distinct points.
        (KMeans(clusters=3) + KMeans(clusters=4)).fit(points)
