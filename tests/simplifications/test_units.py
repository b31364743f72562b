"""Proxies fitted apart, unit by unit, and put together are those fitted in one pass."""

import pickle
from itertools import chain
from pathlib import Path

import pytest

import anamorph as am
from anamorph.errors import AnamorphError
from anamorph.models.base import Batch
from anamorph.simplifications import FittedProxies, Simplified, expand, fit, sites_of, sweep, units
from anamorph.simplifications.units import fit_units, joined
from anamorph.tasks import Task
from anamorph.tasks.batches import collate, plan
from plain import small_model

SAE = "topk_sae(features=12,k=3,passes=2,batch=64)@1.residual"
SPECS = [
    "identity",
    "svd(rank=[1,2,3])@*.*.{query,key};onehot@1.*.pattern",
    "svd(rank=2)@0.0.key",  # one of the fits of the second size
    "svd(rank=2,joint=true)@1.*.{query,key}",
    "svd(rank=2,joint=true)@1.0.{query,key}",
    "svd(rank=2,on=iid)@0.0.key",
    "kmeans(clusters=[4,6],reservoir=100)@0.*.value",
    "linear@{0,1}.mlp",
    "linear@1.mlp",
    "prune(density=0.5,by=wanda)@1.{mlp,attention}",
    "prune(density=0.5,by=wanda)@1.mlp",
    f"{SAE};svd(rank=1)@0.1.key",
    SAE,
    "zero@0.mlp;onehot@1.*.pattern",
]


@pytest.fixture(scope="module")
def model(task: Task) -> am.Decoder:
    return small_model(task)


@pytest.fixture(scope="module")
def data(task: Task) -> dict[str, list[Batch]]:
    return {
        split.name: [collate(split, some) for some in plan(split.lengths[:40], 300)]
        for split in (task.train, task.reference)
    }


def saved(fitted: FittedProxies, folder: Path) -> bytes:
    fitted.save(folder / "fits")
    return (folder / "fits").read_bytes()


@pytest.mark.parametrize("fits", [1, 6, 256, 100_000])
@pytest.mark.filterwarnings("ignore:.*which are few")
def test_fitted_apart_and_joined(
    model: am.Decoder,
    data: dict[str, list[Batch]],
    fits: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(units, "FITS", fits)
    proxies = expand(SPECS)
    parts = fit_units(proxies, model.sites)
    assert sorted(map(str, chain(*parts))) == sorted(map(str, proxies))
    assert len(parts) == {1: 11, 6: 6, 256: 2, 100_000: 2}[fits]
    apart = [pickle.loads(pickle.dumps(fit(model, part, data))) for part in parts]
    whole = fit(model, proxies, data)
    assert saved(joined(proxies, reversed(apart)), tmp_path) == saved(whole, tmp_path)
    assert list(joined(proxies, apart)) == proxies


def test_units_share_no_fit_and_are_alike_in_size(
    model: am.Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every head and size as a proxy of its own, as in a sweep."""
    monkeypatch.setattr(units, "FITS", 10)
    proxies = sweep("svd(rank=[1,2,3])@*.*.{query,key,value}", model.sites, "head")
    proxies += sweep("kmeans(clusters=[2,3])@*.{mlp,residual}", model.sites, "layer")
    parts = fit_units(proxies, model.sites)
    sizes = [
        sum(len(sites) for p in part for _, sites in sites_of(p, model.sites)) for part in parts
    ]
    assert sum(sizes) == 4 * 9 + 2 * 4 and max(sizes) <= 14 and min(sizes) >= 6
    last = [
        max(site.layer for p in part for _, sites in sites_of(p, model.sites) for site in sites)
        for part in parts
    ]
    assert last == sorted(last) and last[0] == 0
    assert fit_units(proxies, model.sites) == parts  # nothing but the arguments decides


def test_an_optimisation_is_a_unit_of_its_own(model: am.Decoder) -> None:
    saes = [SAE.replace("12", str(features)) for features in (8, 12, 16)]
    parts = fit_units(expand([*saes, "svd(rank=1)@1.*.key"]), model.sites)
    alone = [[str(p) for p in part if "sae" in str(p)] for part in parts]
    assert sorted(map(len, alone))[-3:] == [1, 1, 1]


def test_who_shares_a_fit_through_others_is_in_one_unit(
    model: am.Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "FITS", 1)
    specs = ["svd(rank=1)@0.0.key;svd(rank=1)@0.1.key", "svd(rank=1)@1.0.key;svd(rank=1)@1.1.key"]
    specs += ["svd(rank=1)@0.1.key;svd(rank=1)@1.0.key", "svd(rank=1)@0.1.query"]
    first, second, link, other = expand(specs)
    assert fit_units([first, second, link, other], model.sites) == [[other], [first, second, link]]
    assert fit_units([], model.sites) == []
    assert fit_units([Simplified(())], model.sites) == [[Simplified(())]]


def test_a_unit_that_is_missing(model: am.Decoder, data: dict[str, list[Batch]]) -> None:
    one, other = expand(["svd(rank=1)@0.0.key", "svd(rank=1)@1.0.key"])
    with pytest.raises(AnamorphError, match=r"Not fitted: svd\(rank=1\)@1\.0\.key\. Give every"):
        joined([one, other], [fit(model, [one], data)])
