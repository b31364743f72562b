"""What views do at their sites, against NumPy on a decoder that is written out a second time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import anamorph as am
from anamorph.auditing.at_sites import at_sites
from anamorph.auditing.audit import fit_on_task
from anamorph.auditing.samples import scored_sequences
from anamorph.models.sites import Site
from anamorph.simplifications import Simplification, expand
from anamorph.tasks import Task
from coders import cross_layer, sae, transcoder
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
    assert found["l0"].is_null().all() and found["dead"].is_null().all()
    for name, split, _, at, value, _, _, tokens, sequences in found.iter_rows():
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


def in_numpy(view: Simplification) -> tuple[np.ndarray, np.ndarray, np.ndarray | float]:
    """Weights, bias and centre of the encoder of a coder that is trained here, in float64."""
    weight, bias = view.encoder_.double().numpy(), view.encoder_bias_.double().numpy()
    return weight, bias, view.bias_.double().numpy() if view.name == "topk_sae" else 0.0


@pytest.mark.parametrize(
    ("spec", "read", "keep"),
    [
        ("topk_sae(features=40, k=3, batch=64)@1.residual", "1.residual", 0),
        ("topk_transcoder(features=40, k=6, batch=64, skip=true)@1.mlp", "1.mlp_input", 0),
        ("concepts(concepts=12, batch=64)@0.1.value", "0.1.value", 0),
        ("sae({}/sae)@1.residual", "1.residual", 0),
        ("sae({}/sae, keep=2)@1.residual", "1.residual", 2),
        ("concepts(concepts=12, batch=64, keep=1)@0.1.value", "0.1.value", 1),
        ("transcoder({}/transcoder, keep=1, error=true)@1.mlp", "1.mlp_input", 1),
        ("clt({}/clt)@1.mlp", "1.mlp_input", 0),
        ("clt({}/clt, error=true)@1.mlp", "1.mlp_input", 0),
    ],
)
@pytest.mark.filterwarnings("ignore:.*steps")
def test_active_features_are_counted_one_by_one(
    model: am.Decoder,
    task: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spec: str,
    read: str,
    keep: int,
) -> None:
    monkeypatch.setattr("anamorph.auditing.at_sites.FIT_TOKENS", 90)  # several batches
    monkeypatch.setattr("anamorph.auditing.at_sites.POINTS", 16)
    sae(tmp_path / "sae", 1, 8)
    transcoder(tmp_path / "transcoder", 1, 8)
    layers = cross_layer(tmp_path / "clt", 2, 8)
    fitted = fit_on_task(model, expand(spec.format(tmp_path)), task, 40)
    ((view,),) = (proxy.by_site.values() for proxy in fitted.values())
    threshold: np.ndarray | float = 0.0
    if view.kept:
        weight, bias, centre = in_numpy(view)
    elif view.name == "clt":
        weight, bias = layers[1]["W_enc"].T.numpy(), layers[1]["b_enc"].numpy()
        threshold, centre = layers[1]["threshold"].numpy(), 0.0
    else:
        folder = tmp_path / view.name
        stored = load_file(folder / "sae_weights.safetensors")
        weight, bias = stored["W_enc"].numpy(), stored["b_enc"].numpy()
        centre = stored["b_dec"].numpy() if view.name == "sae" else 0.0
    k = {"topk_sae": 3, "topk_transcoder": 6, "sae": 4}.get(view.name)
    layer, *head, kind = read.split(".")
    site = Site(int(layer), int(head[0]) if head else None, kind)

    found = at_sites(model, task.evaluated, fitted.values(), most=5)
    for split in task.evaluated:
        (row,) = found.filter(split=split.name).iter_rows(named=True)
        counts, positions = np.zeros(weight.shape[1]), 0
        for tokens in scored_sequences(split, 5):
            for point in forward(model, tokens, {})[site][keep:]:
                before = (point - centre) @ weight + bias
                least = -np.inf if k is None else np.sort(before)[-k]
                counts += (before > threshold) & (before >= least)
                positions += 1
        assert row["l0"] == pytest.approx(counts.sum() / positions, rel=2e-3)
        assert row["dead"] == pytest.approx((counts == 0).mean(), abs=1e-9)
        assert row["tokens"] == positions
        assert 0 < row["l0"] <= (k or len(counts))
    if k is not None:
        assert found["dead"].max() > 0
