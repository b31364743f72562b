"""A NaN that a proxy makes must stay one, so that the audit refuses it, whatever comes behind."""

import pytest
import torch

from anamorph.simplifications import PCA, SVD, KMeans, OneHot, Simplification

MAPS = [SVD(rank=3), PCA(rank=3), KMeans(clusters=1), KMeans(clusters=5), OneHot()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("simplification", [*MAPS, SVD(rank=3) + KMeans(clusters=4)], ids=str)
def test_a_nan_stays_one_and_others_are_mapped_as_before(
    simplification: Simplification, dtype: torch.dtype
) -> None:
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    fitted = simplification.clone().fit(x)
    x = x.to(dtype)
    before = fitted(x)
    for place in range(8):
        broken = x.clone()
        broken[7, place] = torch.nan
        after = fitted(broken)
        assert after[7].isnan().any()
        others = torch.arange(40) != 7
        assert torch.equal(after[others], before[others])


def test_a_distance_that_overflows_makes_no_nan() -> None:
    """In half precision, as of a residual stream with one large dimension."""
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    x[:100, 3] += 600
    fitted = KMeans(clusters=4).fit(x)
    made = fitted(x.half())
    assert made.isfinite().all()
    assert (made[:100, 3] > 590).all() and (made[100:, 3] < 10).all()
