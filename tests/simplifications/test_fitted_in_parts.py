"""Fits merged from parts of the data, wherever each was seen, are those of one pass."""

import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch import Tensor

import anamorph as am
from anamorph.errors import AnamorphError
from anamorph.models.base import Batch
from anamorph.models.sites import Site
from anamorph.simplifications import (
    SVD,
    FittedProxies,
    Simplification,
    Simplified,
    expand,
    fit,
)
from anamorph.simplifications import points as cutting
from anamorph.simplifications.fitting import learn_parts, see_part
from anamorph.simplifications.points import Lengths, numbered
from anamorph.simplifications.statistics import blocks
from anamorph.tasks import Task
from anamorph.tasks.batches import collate, plan
from plain import forward, small_model

SMALL = "passes=2,batch=64"
SPECS = [
    "svd(rank=[1,3])@*.*.{query,key}",
    "pca(rank=2,joint=true,keep=3)@1.*.{query,key}",
    "svd(rank=2,on=iid)@1.mlp;onehot@1.*.pattern",
    "kmeans(clusters=6,reservoir=100)@*.*.key",
    "svd(rank=3)+kmeans(clusters=9,keep=2)@1.mlp",
    "mean@1.*.output",
    "random(rank=3)@0.mlp",
    "resample(reservoir=50,on=train+iid)@0.mlp",
    "estimator(of=PCA,n_components=3)@1.residual",
    "linear@1.mlp",
    "low_rank(rank=2,whitened=true)@1.{mlp,attention}",
    "prune(density=0.5,by=wanda)@1.{mlp,attention}",
    "prune(density=0.5,by=wanda)@*.mlp",
    "quantize(bits=3,calibrated=true)@1.{mlp,attention}",
    f"concepts(concepts=4,{SMALL})@0.mlp",
    f"topk_sae(features=12,k=3,{SMALL})@1.residual;svd(rank=1)@0.0.key",
    f"topk_transcoder(features=12,k=3,skip=true,{SMALL},on=iid)@1.mlp",
    "zero@1.*.output",
]


class Last(Simplification):
    """Puts the last point of all in place of each; the statistic cannot be made of parts."""

    name = "last"

    class Seen:
        key = "last"

        def update(self, x: Tensor) -> None:
            self.point = x[-1].double().clone()

    def statistic(self, dim: int) -> Seen:
        return self.Seen()

    def learn(self, statistic: Seen) -> Self:
        self.point_ = statistic.point
        return self

    def __call__(self, x: Tensor) -> Tensor:
        return self.point_.to(x).expand_as(x)


@pytest.fixture(scope="module")
def model(task: Task) -> am.Decoder:
    return small_model(task)


@pytest.fixture(scope="module")
def data(task: Task) -> dict[str, list[Batch]]:
    train, iid = batches(task.train), batches(task.reference)
    return {"train": train, "iid": iid, "train+iid": [*train[:3], *iid]}


def batches(split: Any) -> list[Batch]:
    return [collate(split, some) for some in plan(split.lengths[:90], 200)]


def cut(batches: Sequence[Batch]) -> list[list[Batch]]:
    """Batches by the part in which `fit` sees them."""
    parts: dict[int, list[Batch]] = {}
    for one in numbered(batches, Lengths(), cut=True):
        parts.setdefault(one.part, []).append(one.batch)
    return list(parts.values())


def lengths(batches: Sequence[Batch]) -> Lengths:
    return Counter(int(length) for batch in batches for length in batch.mask.sum(1))


def seen_apart(
    model: am.Decoder,
    proxies: list[Simplified],
    name: str,
    parts: list[list[Batch]],
    whole: Lengths | None = None,
) -> Iterator[bytes]:
    before: list[Batch] = []
    for part in parts:
        seen = see_part(model, proxies, name, part, lengths(before), whole=whole)
        yield pickle.dumps(seen)
        before += part


def saved(fitted: FittedProxies, folder: Path) -> bytes:
    fitted.save(folder / "fits")
    return (folder / "fits").read_bytes()


@pytest.mark.parametrize("tokens", [1, 300, 1000, 10**9])
@pytest.mark.filterwarnings("ignore:.*which are few")
def test_parts_of_every_size(
    model: am.Decoder,
    data: dict[str, list[Batch]],
    tokens: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cutting, "PART", tokens)
    monkeypatch.setattr(blocks, "BLOCK", 64)  # so that parts have several, and a rest
    proxies = [*expand(SPECS), Simplified((Last() @ "1.mlp",))]
    parts = {name: cut(some) for name, some in data.items()}
    assert len(parts["train"]) == {1: 13, 300: 4, 1000: 2, 10**9: 1}[tokens]
    whole = saved(fit(model, proxies, data), tmp_path)
    for known in (False, True):
        seen = {
            name: map(pickle.loads, seen_apart(model, proxies, name, some, all_ if known else None))
            for name, some in parts.items()
            for all_ in [lengths(data[name])]
        }
        assert saved(learn_parts(model, proxies, seen, data), tmp_path) == whole


def test_fits_merged_from_parts_are_those_of_all_points(
    model: am.Decoder, data: dict[str, list[Batch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against numpy, on all points of a decoder that is written out a second time."""
    proxies = expand(["pca(rank=3)@1.mlp", "mean@1.mlp", "svd(rank=2,keep=4)@0.1.key"])
    mlp, key = Site(1, None, "mlp"), Site(0, 1, "key")
    rows = [b.tokens[i][b.mask[i]].tolist() for b in data["train"] for i in range(len(b.tokens))]
    found = [forward(model, row, {}) for row in rows]
    points = np.concatenate([one[mlp] for one in found])
    keys = np.concatenate([one[key][4:] for one in found])
    monkeypatch.setattr(cutting, "PART", 300)
    pca, mean, svd = (fitted.by_site for fitted in fit(model, proxies, data).values())
    np.testing.assert_allclose(mean[mlp](torch.zeros(1, 8))[0], points.mean(axis=0), atol=1e-5)
    axes = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)[2][:3]
    ours = pca[mlp].components_.numpy()
    np.testing.assert_allclose(ours.T @ ours, axes.T @ axes, atol=1e-4)
    axes = np.linalg.svd(keys, full_matrices=False)[2][:2]
    ours = svd[key].components_.numpy()
    np.testing.assert_allclose(ours.T @ ours, axes.T @ axes, atol=1e-4)


def test_what_travels_is_small(
    model: am.Decoder, data: dict[str, list[Batch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "PART", 600)
    parts, dim = cut(data["train"]), 4
    tokens = lengths(data["train"])
    about = 1_500  # bytes of what is said of a statistic beside its numbers
    moments = list(seen_apart(model, expand("svd(rank=1)@0.0.key"), "train", parts))
    assert max(map(len, moments)) < 8 * dim * (dim + 1) + about
    sample = expand("kmeans(clusters=2,reservoir=400)@0.0.key")
    point = 8 + 4 * dim
    unknown = sum(map(len, seen_apart(model, sample, "train", parts)))
    known = sum(map(len, seen_apart(model, sample, "train", parts, tokens)))
    assert unknown > len(parts) * 400 * point * 0.9
    assert 400 * point < known < 400 * point + len(parts) * about


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("svd(rank=1)@1.mlp", r"Split 'train': Cannot fit at 1\.mlp: sequence 41 of the data"),
        ("prune(density=0.5,by=wanda)@1.mlp", r"Split 'train': .*\.up: sequence 41 of the data"),
    ],
)
def test_a_nan_in_a_later_part_names_its_sequence(
    task: Task, spec: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "PART", 400)
    model, strange = small_model(task), 2
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(3, 7, (60, 20)))
    tokens[41, 7] = strange
    with torch.no_grad():
        model.embedding.weight[strange] = torch.nan
    some = [Batch.whole(rows) for rows in tokens.split(5)]
    parts = cut(some)
    assert [len(part) for part in parts] == [4, 4, 4]
    with pytest.raises(AnamorphError, match=message):
        fit(model, expand(spec), {"train": some})
    with pytest.raises(AnamorphError, match=message):
        see_part(model, expand(spec), "train", parts[2], Counter({20: 40}))


def test_parts_must_be_there_and_follow_each_other(
    model: am.Decoder, data: dict[str, list[Batch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "PART", 300)
    for spec in ("svd(rank=1)@1.mlp", "prune(density=0.5,by=wanda)@1.mlp"):
        proxies = expand(spec)
        parts = cut(data["train"])
        first, _, third, *_ = map(pickle.loads, seen_apart(model, proxies, "train", parts))
        begins, ends = third.before.total(), first.lengths.total()
        message = f"begins with sequence {begins} cannot follow one that ends before.*{ends};"
        with pytest.raises(AnamorphError, match=message):
            learn_parts(model, proxies, {"train": [first, third]}, data)
        with pytest.raises(AnamorphError, match="Split 'train': Nothing was seen of it"):
            learn_parts(model, proxies, {}, data)


def test_the_model_runs_again_only_for_what_cannot_be_merged(
    model: am.Decoder, data: dict[str, list[Batch]]
) -> None:
    unread: dict[str, Any] = {"train": None}
    proxies = expand(["svd(rank=1)@1.mlp", "zero@0.mlp", "prune(density=0.5,by=wanda)@1.mlp"])
    seen = [see_part(model, proxies, "train", data["train"], Lengths())]
    assert len(learn_parts(model, proxies, {"train": seen}, unread)) == 3
    for given in expand(["zero@0.mlp", "onehot@1.*.pattern", "prune(density=0.5)@1.mlp"]):
        seen = [see_part(model, [given], "train", [*data["train"]], Lengths())]
        assert not seen[0].statistics
        assert len(learn_parts(model, [given], {"train": seen}, unread)) == 1
    with pytest.raises(TypeError):
        mixed = [*proxies, Simplified((Last() @ "1.mlp",))]
        seen = [see_part(model, mixed, "train", data["train"], Lengths())]
        learn_parts(model, mixed, {"train": seen}, unread)


def test_a_part_with_no_point_behind_those_that_are_kept(
    model: am.Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    some = [
        Batch.whole(torch.from_numpy(rng.integers(3, 7, (6, length))))
        for length in (3, 12, 3, 3, 9)
    ]
    proxies = expand(
        [
            "svd(rank=1,keep=5)@1.mlp",
            "kmeans(clusters=3,reservoir=20,keep=5)@1.mlp",
            "svd(rank=2,keep=5)+kmeans(clusters=3)@0.0.key",
        ]
    )
    monkeypatch.setattr(cutting, "PART", 1)
    whole = fit(model, proxies, {"train": some})
    seen = map(pickle.loads, seen_apart(model, proxies, "train", cut(some)))
    parts = learn_parts(model, proxies, {"train": seen}, {"train": some})
    assert saved(whole, tmp_path) == saved(parts, tmp_path)
    svd: Any = whole[proxies[0]].by_site[Site(1, None, "mlp")]
    by_hand = [
        forward(model, row, {})[Site(1, None, "mlp")][5:] for b in some for row in b.tokens.tolist()
    ]
    assert isinstance(svd, SVD)
    axis = np.linalg.svd(np.concatenate(by_hand))[2][0]
    np.testing.assert_allclose(svd.components_[0].abs(), np.abs(axis), atol=1e-4)


def test_a_part_is_run_no_further_than_what_can_be_merged(
    model: am.Decoder, data: dict[str, list[Batch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch shows that the optimisation in the second layer is none of it."""
    layers: list[int] = []
    own = am.Decoder.layer

    def layer(self: am.Decoder, index: int, *given: Any, **named: Any) -> Any:
        layers.append(index)
        return own(self, index, *given, **named)

    monkeypatch.setattr(am.Decoder, "layer", layer)
    proxies = expand([f"topk_sae(features=12,k=3,{SMALL})@1.residual", "svd(rank=1)@0.0.key"])
    see_part(model, proxies, "train", data["train"], Lengths())
    assert layers == [0, 1, *[0] * (len(data["train"]) - 1)]
