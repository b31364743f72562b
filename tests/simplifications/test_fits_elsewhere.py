"""Whatever can be fitted is fitted with the model on an accelerator, to the CPU's numbers."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import anamorph as am
from anamorph.models.base import Batch
from anamorph.simplifications import SIMPLIFICATIONS, KMeans, expand, fit
from anamorph.simplifications.methods import kmeans, topk
from anamorph.simplifications.methods.topk import TopKSAE
from anamorph.simplifications.sparse_device import DeviceTrainer
from anamorph.simplifications.statistics.moments import Moments
from anamorph.simplifications.statistics.reservoir import Reservoir
from anamorph.simplifications.statistics.squares import Squares
from anamorph.tasks import Task
from coders import cross_layer, sae, transcoder
from plain import small_model
from pretended import DEVICE, Pretended, on_accelerator

SMALL = "passes=3,batch=64"
SPECS = {
    "clt": ["clt({}/clt)@*.mlp"],
    "concepts": [f"concepts(concepts=4,{SMALL})@0.mlp"],
    "estimator": ["estimator(of=FastICA,n_components=3)@1.residual"],
    "frozen": ["pca(rank=2)@0.mlp;frozen@1.*.pattern"],
    "kmeans": ["kmeans(clusters=6)@*.*.key", "svd(rank=3)+kmeans(clusters=9)@1.mlp"],
    "linear": ["linear@1.mlp"],
    "low_rank": ["low_rank(rank=2)@0.mlp", "low_rank(rank=2,whitened=true)@1.{mlp,attention}"],
    "mean": ["mean@1.*.output", "mean(keep=2)@0.mlp"],
    "onehot": ["onehot@1.*.pattern"],
    "pca": ["pca(rank=2,joint=true)@1.0.{query,key}", "pca(rank=3,keep=1)@0.mlp"],
    "projection": ["projection({}/p.npy)@1.{residual,mlp}"],
    "prune": ["prune(density=0.5)@0.mlp", "prune(density=0.5,by=wanda)@1.{mlp,attention}"],
    "quantize": ["quantize(bits=3)@0.mlp", "quantize(bits=3,calibrated=true)@1.{mlp,attention}"],
    "random": ["random(rank=3)@0.mlp"],
    "resample": ["resample(reservoir=50)@0.mlp"],
    "sae": ["sae({}/sae)@1.residual"],
    "svd": ["svd(rank=2)@*.*.{{query,key}}"],
    "topk_attention": ["topk_attention(k=2)@*.*.pattern"],
    "topk_sae": [f"topk_sae(features=12,k=3,{SMALL})@1.residual"],
    "topk_transcoder": [f"topk_transcoder(features=12,k=3,skip=true,{SMALL})@1.mlp"],
    "transcoder": ["transcoder({}/transcoder,error=true)@1.mlp"],
    "window": ["window(size=3)@*.*.pattern"],
    "zero": ["zero@1.*.output"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("coders")
    sae(path / "sae", 1, 8)
    np.save(path / "p.npy", np.diag([1.0] * 3 + [0.0] * 5))
    transcoder(path / "transcoder", 1, 8)
    cross_layer(path / "clt", 2, 8)
    return path


def test_every_method_is_here() -> None:
    assert SPECS.keys() == SIMPLIFICATIONS.keys()


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.filterwarnings("ignore:.*which are few")
def test_it_is_fitted_and_put_in_place(name: str, task: Task, folder: Path) -> None:
    specs = [
        spec.replace("{}", str(folder)).replace("{{", "{").replace("}}", "}")
        for spec in SPECS[name]
    ]
    options: dict[str, Any] = {"by": "all", "sequences": 8, "fit_sequences": 40}
    usual = am.audit(small_model(task), task, specs, **options).results
    with Pretended():
        model: Any = on_accelerator(small_model(task))
        away = am.audit(model, task, specs, **options).results
    words = pl.exclude("value", "low", "high")
    assert away.select(words).equals(usual.select(words)) and len(usual) > 50
    values = (x["value"].to_numpy() for x in (away, usual))
    np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-5)


def random_points(count: int, dim: int = 5) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize(
    ("spec", "other"),
    [
        ("svd(rank=2)@0.0.key", "svd(rank=2)@*.*.{query,key};pca(rank=2,keep=2)@*.residual"),
        ("kmeans(clusters=2)@0.0.key", "kmeans(clusters=2)@*.*.{query,key,value}"),
        ("prune(density=0.5,by=wanda)@0.mlp", "prune(density=0.5,by=wanda)@*.{attention,mlp}"),
        ("low_rank(rank=2,whitened=true)@0.mlp", "low_rank(rank=2,whitened=true)@*.attention"),
    ],
)
def test_the_device_is_waited_for_once_a_batch_however_many_sites(
    spec: str, other: str, task: Task
) -> None:
    """Ten batches more cost ten looks more."""
    tokens = torch.arange(40).view(4, 10) % 5
    batch = Batch.whole(tokens)
    more = []
    for proxies in (expand(spec), expand(other)):
        looks = []
        for count in (5, 15):
            with Pretended() as pretended:
                fit(on_accelerator(small_model(task)), proxies, {"train": [batch] * count})  # type: ignore[arg-type]
                looks.append(pretended.looks)
        more.append(looks[1] - looks[0])
    assert more == [10, 10]


def test_a_sample_of_points_elsewhere_is_that_of_the_cpu() -> None:
    """Only points that may stay are brought, many at a time; those of a big update too."""
    x = random_points(30_000)
    for sizes in ([30_000], [100] * 300, [1, 20_000, 9_999]):
        here, whole = (Reservoir(capacity=500, seed=3) for _ in range(2))
        with Pretended() as pretended:
            away = Reservoir(capacity=500, seed=3)
            for piece in torch.split(x, sizes):
                here.update(piece)
                away.update(piece.to(DEVICE))
            assert away.device == DEVICE and here.device == torch.device("cpu")
            assert pretended.looks < 4
            assert torch.equal(away.points(), here.points())
        whole.update(x)
        assert torch.equal(here.points(), whole.points())
    first, second = Reservoir(capacity=50, seed=0), Reservoir(capacity=50, seed=0, start=400)
    with Pretended():
        first.update(x[:400].to(DEVICE))
        second.update(x[400:700].to(DEVICE))
        first.merge(second)
        here = Reservoir(capacity=50, seed=0)
        here.update(x[:700])
        assert torch.equal(first.points(), here.points())


def test_clusters_are_found_where_the_points_are(monkeypatch: pytest.MonkeyPatch) -> None:
    x, there = random_points(900), []
    usual = KMeans(clusters=12, seed=4).fit(x).centers_
    own = kmeans.lloyd

    def watched(points: torch.Tensor, *given: Any) -> torch.Tensor:
        there.append((points.device, points.dtype))
        return own(points, *given)

    monkeypatch.setattr(kmeans, "lloyd", watched)
    with Pretended():
        away = KMeans(clusters=12, seed=4).fit(x.to(DEVICE)).centers_
        assert away.device == torch.device("cpu")
    assert there == [(DEVICE, torch.float64)]
    torch.testing.assert_close(away, usual, rtol=0, atol=1e-12)


def test_sums_of_squares_are_made_where_the_points_are() -> None:
    x = random_points(5_000)
    usual, (first, later) = Squares(5), (Squares(5), Squares(5))
    usual.update(x)
    with Pretended() as pretended:
        first.update(x[:2_500].to(DEVICE))
        later.update(x[2_500:].to(DEVICE))
        first.merge(later)
        assert pretended.looks == 0
        torch.testing.assert_close(first.norms, usual.norms, rtol=1e-14, atol=0)
    assert torch.equal(Squares(3).norms, torch.zeros(3).double())


def test_what_was_seen_on_a_device_can_be_sent() -> None:
    """It comes to the CPU, and what it is merged with may be on a device or not."""
    x = random_points(5_000)
    for kind in (Moments, Squares):
        usual, (first, later) = kind(5), (kind(5), kind(5))
        usual.update(x)
        with Pretended():
            first.update(x[:2_500].to(DEVICE))
            later.update(x[2_500:].to(DEVICE))
            first.merge(pickle.loads(pickle.dumps(later)))
            back = pickle.loads(pickle.dumps(first))
            found, sent, expected = (
                s.norms if isinstance(s, Squares) else s.scatter for s in (first, back, usual)
            )
        assert torch.equal(found, sent) and sent.device == torch.device("cpu")
        torch.testing.assert_close(sent, expected, rtol=1e-13, atol=1e-10)


def test_steps_on_a_device_do_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty steps in a pool, at whose fiftieth and last the error is looked at."""
    made = []

    class Watched(DeviceTrainer):
        def step(self, *given: Any) -> torch.Tensor | float:
            made.append(pretended.looks)
            return super().step(*given)

    monkeypatch.setattr(topk, "DeviceTrainer", Watched)
    sae = TopKSAE(features=20, k=3, batch=16)
    with Pretended() as pretended:
        statistic = sae.statistic(5)
        statistic.update(random_points(960).to(DEVICE))
        with pytest.warns(UserWarning, match="in 60 steps, which are few"):
            sae.learn(statistic)
    assert len(made) == 60 and made[49] == made[0] and made[50] == made[0] + 1 == made[59]
    usual = TopKSAE(features=20, k=3, batch=16)
    with pytest.warns(UserWarning):
        usual.fit(random_points(960))
    for name, value in usual.state_dict().items():
        torch.testing.assert_close(sae.state_dict()[name], value, rtol=0, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.filterwarnings("ignore:.*which are few")
def test_on_a_gpu_fits_are_those_of_the_cpu() -> None:
    x = random_points(9_000, 16)
    usual, away = (KMeans(clusters=30).fit(points).centers_ for points in (x, x.cuda()))
    torch.testing.assert_close(away, usual, rtol=0, atol=1e-9)
    found = [TopKSAE(features=64, k=8, passes=10, batch=256).fit(p) for p in (x, x.cuda())]
    errors = [float((sae(x) - x).square().sum() / x.square().sum()) for sae in found]
    assert abs(errors[0] - errors[1]) < 0.01  # in bfloat16, on most
    assert torch.equal(found[1].decoder_, TopKSAE(**found[1].get_params()).fit(x.cuda()).decoder_)
