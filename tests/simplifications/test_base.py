"""What every simplification gets from its base class."""

import copy
import pickle
from pathlib import Path

import pytest
import torch

import anamorph as am
from anamorph.errors import AnamorphError
from anamorph.simplifications import PCA, SVD, KMeans, NotFittedError, OneHot, Simplification


def test_text_leaves_defaults_out() -> None:
    assert str(SVD(rank=4)) == repr(SVD(rank=4)) == "svd(rank=4)"
    assert str(KMeans(clusters=4, seed=0)) == "kmeans(clusters=4)"
    assert str(KMeans(clusters=4, seed=2, reservoir=9)) == "kmeans(clusters=4, seed=2, reservoir=9)"
    assert str(OneHot()) == "onehot"
    assert str(SVD(rank=8) + KMeans(clusters=64)) == "svd(rank=8)+kmeans(clusters=64)"


def test_equality_is_by_kind_and_hyper_parameters() -> None:
    assert SVD(rank=4) == SVD(rank=4).fit(torch.eye(4))
    assert len({SVD(rank=4), SVD(rank=4), SVD(rank=5), PCA(rank=4)}) == 3


def test_a_learnt_attribute_before_fit_says_so() -> None:
    with pytest.raises(NotFittedError, match=r"svd\(rank=4\) has no components_: it is not fitted"):
        SVD(rank=4)(torch.eye(4))
    assert not hasattr(SVD(rank=4), "components_")
    with pytest.raises(AttributeError, match="no attribute 'ranks'"):
        _ = SVD(rank=4).ranks


def test_a_fit_forgets_what_was_learnt_before() -> None:
    kmeans = KMeans(clusters=3).fit(torch.eye(4))
    with pytest.raises(AnamorphError, match="clusters above points"):
        kmeans.fit(torch.eye(2))
    with pytest.raises(NotFittedError):
        _ = kmeans.centers_


def test_copies_and_pickles_keep_what_was_learnt() -> None:
    svd = SVD(rank=2).fit(torch.randn(9, 3))
    for other in (copy.deepcopy(svd), pickle.loads(pickle.dumps(svd))):
        assert torch.equal(other.components_, svd.components_)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "kind", [SVD(rank=1), KMeans(clusters=1), OneHot(), SVD(rank=1) + PCA(rank=1)]
)
def test_no_fit_to_a_nan(kind: Simplification, bad: float) -> None:
    x = torch.ones(2, 5, 3)
    x[1, 2, 0] = bad
    with pytest.raises(AnamorphError, match=r"NaN or infinity.*point 7 of 10"):
        kind.fit(x)


def test_load_by_the_base_class_reads_any(tmp_path: Path) -> None:
    x = torch.randn(50, 4)
    for simplification in (SVD(rank=2), SVD(rank=3) + KMeans(clusters=5)):
        simplification.fit(x).save(tmp_path / "it")
        loaded = Simplification.load(tmp_path / "it")
        assert loaded == simplification
        assert torch.equal(loaded(x), simplification(x))


def test_files_that_cannot_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "it"
    PCA(rank=2).fit(torch.eye(3)).save(path)
    with pytest.raises(AnamorphError, match=r"holds pca\(rank=2\), not SVD"):
        SVD.load(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(AnamorphError, match="damaged"):
        PCA.load(path)
    with pytest.raises(AnamorphError):
        PCA.load(tmp_path / "absent")


@pytest.mark.parametrize("taken", ["keep", "on", "joint", "at", "fit", "name", "kinds"])
def test_a_parameter_that_would_never_arrive_is_refused(taken: str) -> None:
    """`own(keep=5)` of a spec is of the attachment; a parameter `at` would hide a method."""
    code = f"""
class Own(am.Simplification):
    name = "own"
    def __init__(self, *, {taken}=1):
        self.{taken} = {taken}
    def __call__(self, x):
        return x
"""
    with pytest.raises(am.AnamorphError, match=f"Own has a parameter {taken}, which means"):
        exec(code, {"am": am, "__name__": "own"})
