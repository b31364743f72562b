"""Explained variance at sites, against NumPy on a decoder that is written out a second time."""

import numpy as np
import pytest
import torch

import anamorph as am
from anamorph.auditing.at_sites import at_sites
from anamorph.auditing.audit import fit_on_task
from anamorph.auditing.samples import scored_sequences
from anamorph.models.sites import Site
from anamorph.simplifications import expand
from anamorph.tasks import Task
from plain import forward, small_model

SPECS = [
    "svd(rank=2)@1.*.{query,key}",
    "pca(rank=1)+kmeans(clusters=3)@1.1.value",
    "linear@0.mlp;linear(source=middle)@1.mlp",
    "linear(source=residual)@1.mlp;svd(rank=3)@1.0.output",
    "pca(rank=2, keep=3)@0.residual",
]


@pytest.fixture(scope="module")
def model(task: Task) -> am.Decoder:
    return small_model(task)


def test_it_is_a_ratio_of_sums_about_the_mean(model: am.Decoder, task: Task) -> None:
    fitted = fit_on_task(model, expand([*SPECS, "onehot@1.*.pattern"]), task, 40)
    found = at_sites(model, task.evaluated, fitted.values(), most=7)
    assert len(found) == len(task.evaluated) * (4 + 1 + 2 + 2 + 1)  # a pattern has no fixed width
    clean = {
        split.name: [forward(model, x, {}) for x in scored_sequences(split, 7)]
        for split in task.evaluated
    }
    by_name = {str(proxy): fitted[proxy].by_site for proxy in fitted}
    for name, split, _, at, value, tokens, sequences in found.iter_rows():
        layer, *head, kind = at.split(".")
        site = Site(int(layer), int(head[0]) if head else None, kind)
        view = by_name[name][site]
        reads = view.reads(site) or (site,)
        first = 3 if "keep=3" in name else 0
        y = np.concatenate([run[site][first:] for run in clean[split]])
        given = [np.concatenate([run[read][first:] for run in clean[split]]) for read in reads]
        made = view(*map(torch.from_numpy, given)).numpy()
        variance = ((y - y.mean(0)) ** 2).sum()
        assert value == pytest.approx(1 - ((y - made) ** 2).sum() / variance, abs=2e-4)
        assert (tokens, sequences) == (len(y), 7)
    assert found["explained_variance"].min() < 0.5 < found["explained_variance"].max()


def test_the_model_itself_explains_everything(model: am.Decoder, task: Task) -> None:
    fitted = fit_on_task(
        model, expand("svd(rank=4)@*.*.{query,key};pca(rank=8)@*.residual"), task, 9
    )
    found = at_sites(model, task.evaluated, fitted.values())
    assert found["explained_variance"].to_list() == pytest.approx([1] * len(found), abs=1e-10)


def test_numbers_do_not_depend_on_threads(model: am.Decoder, task: Task) -> None:
    fitted = fit_on_task(model, expand(SPECS), task, 9)
    one = at_sites(model, task.evaluated, fitted.values())
    torch.set_num_threads(3)
    assert at_sites(model, task.evaluated, fitted.values()).equals(one)


def test_what_is_not_finite_is_named(model: am.Decoder, task: Task) -> None:
    fitted = fit_on_task(model, expand("svd(rank=2)@0.mlp"), task, 9)
    (proxy,) = fitted.values()
    proxy.by_site[Site(0, None, "mlp")].components_[0, 0] = torch.nan
    with pytest.raises(am.AnamorphError, match=r"svd\(rank=2\)@0.mlp on split 'iid'.*at 0.mlp"):
        at_sites(model, task.evaluated, fitted.values())


def test_without_anything_to_look_at(model: am.Decoder, task: Task) -> None:
    fitted = fit_on_task(model, expand("onehot@1.*.pattern"), task, 9)
    assert at_sites(model, task.evaluated, fitted.values()).is_empty()
