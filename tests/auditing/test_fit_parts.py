"""A fit on a task, seen in parts by other processes, is that of this one."""

from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

import anamorph as am
from anamorph.auditing.audit import fit_on_task, with_identity
from anamorph.auditing.fit_parts import FitPart, fit_parts, learn_on_task, see_on_task
from anamorph.auditing.samples import fit_data
from anamorph.machine.workers import apart
from anamorph.simplifications import points
from anamorph.simplifications.points import Lengths, numbered
from anamorph.tasks import Task
from elsewhere import seen_part
from plain import small_model

SPECS = [
    "svd(rank=[1,2])@*.*.{query,key}",
    "kmeans(clusters=8,reservoir=300,keep=2)@1.mlp",
    "svd(rank=2,on=train+iid)@1.0.key",
    "low_rank(rank=2,whitened=true,on=iid)@0.mlp",
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


@pytest.mark.usefixtures("small_parts")
@pytest.mark.filterwarnings("ignore:.*which are few", "ignore:.*to fit on, but")
def test_two_processes_see_what_one_sees(task: Task, tmp_path: Path) -> None:
    model, proxies = small_model(task), with_identity(SPECS)
    fit_on_task(model, proxies, task, 100).save(tmp_path / "one")
    parts = fit_parts(task, 100, proxies)
    calls = [partial(seen_part, model, proxies, task, 100, part) for part in parts]
    found = dict(apart(calls, 2))  # in whatever order they end
    assert set(found) == set(parts)
    seen = {
        name: [found[part] for part in parts if part.split == name]
        for name in dict.fromkeys(part.split for part in parts)
    }
    learn_on_task(model, proxies, task, 100, seen).save(tmp_path / "two")
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()


def test_a_part_of_a_split_that_there_is_not(task: Task) -> None:
    model = small_model(task)
    with pytest.raises(am.AnamorphError, match="no split 'nowhere' to fit on"):
        see_on_task(model, with_identity(SPECS), task, 10, FitPart("nowhere", 0, (0, 10)))
