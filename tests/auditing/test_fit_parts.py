"""A fit on a task, seen in parts by other processes, is that of this one."""

from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

import anamorph as am
from anamorph.auditing.audit import fit_on_task, simplified, with_identity
from anamorph.auditing.fit_parts import FitPart, fit_parts, learn_on_task, see_on_task
from anamorph.auditing.samples import fit_data
from anamorph.machine.workers import apart
from anamorph.simplifications import points, units
from anamorph.simplifications.points import Lengths, numbered
from anamorph.simplifications.seen_part import SeenPart
from anamorph.simplifications.units import fit_units, joined
from anamorph.tasks import Task
from elsewhere import seen_part
from plain import small_model

SPECS = [
    "svd(rank=[1,2])@*.*.{query,key}",
    "kmeans(clusters=8,reservoir=300,keep=2)@1.mlp",
    "svd(rank=2,on=train+iid)@1.0.key",
    "low_rank(rank=2,whitened=true,on=iid)@0.mlp",
    "low_rank(rank=2,whitened=true)@1.mlp",
    "prune(density=0.5,by=wanda)@1.{mlp,attention}",
    "low_rank(rank=1,whitened=true)@1.attention",
    "topk_sae(features=8,k=2,passes=2,batch=64)@1.residual",
    "onehot@1.*.pattern",
]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anamorph.auditing.fit_parts.FIT_TOKENS", 200)
    monkeypatch.setattr("anamorph.auditing.samples.FIT_TOKENS", 200)
    monkeypatch.setattr(points, "PART", 400)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.filterwarnings("ignore:.*to fit on, but")
def test_parts_are_those_of_fit(task: Task) -> None:
    proxies = with_identity(SPECS)
    parts = fit_parts(task, 100, proxies)
    assert list(dict.fromkeys(part.split for part in parts)) == ["train", "train+iid", "iid"]
    for name, batches in fit_data(task, 100, proxies).items():
        own = [part for part in parts if part.split == name]
        assert [part.number for part in own] == list(range(len(own)))
        cut = list(numbered(batches, Lengths(), cut=True))
        starts = [(one.part, one.first) for one in cut]
        assert starts == [(part.number, start) for part in own for start in part.bounds[:-1]]
        assert all(one.bounds[-1] == other.bounds[0] for one, other in pairwise(own))
        assert name != "train" or len(own) == 4
    assert fit_parts(task, 100, with_identity([])) == []
    assert {part.split for part in fit_parts(task, 9, with_identity(SPECS[3:4]))} == {"iid"}


@pytest.mark.filterwarnings("ignore:.*which are few", "ignore:.*to fit on, but")
def test_two_processes_fit_what_one_fits(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, proxies = small_model(task), with_identity(SPECS)
    monkeypatch.setattr(points, "PART", 1)  # a batch a part
    fit_on_task(model, proxies, task, 300).save(tmp_path / "one")
    parts = fit_parts(task, 300, proxies)
    assert sum(part.split == "train" for part in parts) == 4
    monkeypatch.setattr(units, "FITS", 6)
    chosen = fit_units(simplified(proxies), model.sites)
    assert len(chosen) == 4
    calls = [partial(seen_part, model, chosen, task, 300, part) for part in parts]
    found = dict(apart(calls, 2))  # in whatever order they end
    assert set(found) == set(parts)

    def of_unit(number: int) -> dict[str, list[SeenPart]]:
        names = dict.fromkeys(part.split for part in parts)
        return {name: [found[p][number] for p in parts if p.split == name] for name in names}

    learnt = [learn_on_task(model, u, task, 300, of_unit(n)) for n, u in enumerate(chosen)]
    joined(simplified(proxies), learnt).save(tmp_path / "two")
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()


def test_a_part_of_a_split_that_there_is_not(task: Task) -> None:
    model = small_model(task)
    with pytest.raises(am.AnamorphError, match="no split 'nowhere' to fit on"):
        see_on_task(model, [with_identity(SPECS)], task, 10, FitPart("nowhere", 0, (0, 10)))
