"""What a simplification is told of its place, may read there, and is shown of the model."""

from typing import Any, ClassVar, Self

import numpy as np
import pytest
import torch
from torch import Tensor

import anamorph as am
from anamorph.auditing.audit import fit_on_task, with_identity
from anamorph.auditing.engine import audit_split
from anamorph.auditing.proxies import SimplifiedProxy
from anamorph.auditing.stacks import stacked_edits
from anamorph.models.base import Batch, Context, LayerKind
from anamorph.models.huggingface.model import HuggingFace
from anamorph.models.sites import Site
from anamorph.simplifications import (
    SIMPLIFICATIONS,
    FittedProxies,
    FittedProxy,
    Replacement,
    Simplification,
    Simplified,
    Where,
    expand,
    fit,
)
from anamorph.tasks import Task
from huggingface_models import VOCABULARY, make
from plain import forward, small_model
from plain_modules import CONTEXT, Transformer, large

WORD = torch.tensor([[0, 2, 3, 5, 6, 4, 7, 1], [0, 3, 3, 6, 6, 1, 0, 0]])
BATCH = Batch(WORD, torch.arange(8) < torch.tensor([[8], [6]]))


@pytest.fixture(scope="module")
def model(task: Task) -> am.Decoder:
    return small_model(task, layers=3)


def logits(model: Any, batch: Batch, *proxies: FittedProxy, led: bool = False) -> Tensor:
    """[copy, batch, position, token]."""
    with torch.inference_mode():
        ran = model.run(batch, stacked_edits(proxies, led))
        return model.logits(ran.state)  # type: ignore[no-any-return]


# --- where it stands ----------------------------------------------------------------------------


class Told(Replacement):
    """Scales what it reads by a number that depends on where it stands."""

    name = "told"
    kinds: ClassVar[frozenset[str]] = frozenset({"mlp", "query"})
    kept: ClassVar[bool] = False
    told: ClassVar[list[Where]] = []

    _layer = -1

    def reads(self, site: Site) -> tuple[Site, ...]:
        return (Site(site.layer, None, "middle"), site) if site.kind == "mlp" else (site,)

    def placed(self, where: Where) -> Self:
        self.told.append(where)
        placed = self.clone()
        placed._layer = where.sites[0].layer
        return placed

    def learn(self, statistic: None) -> Self:
        self.scale_ = torch.tensor(1.0 + self._layer)
        return self

    def __call__(self, *read: Tensor) -> Tensor:
        return self.scale_.to(read[-1]) * read[-1]


def test_it_is_told_where_it_stands_before_it_learns(
    model: am.Decoder, task: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setitem(SIMPLIFICATIONS, "told", Told)
    monkeypatch.setattr(Told, "told", [])
    proxies = expand(["told@{0,2}.mlp", "told@1.1.query"])
    fitted = fit_on_task(model, proxies, task, 5)
    one, two = Site(0, None, "mlp"), Site(2, None, "mlp")
    query = Site(1, 1, "query")
    assert [(w.sites, w.reads, w.widths) for w in Told.told] == [
        ((one,), (Site(0, None, "middle"), one), (8, 8, 8)),
        ((two,), (Site(2, None, "middle"), two), (8, 8, 8)),
        ((query,), (query,), (4, 4)),
    ]
    assert all(where.model == model.describe() for where in Told.told)
    scales = [float(s.scale_) for f in fitted.values() for s in f.by_site.values()]
    assert scales == [1.0, 3.0, 2.0]
    assert all(not s.state_dict() for f in fitted.values() for s in f.by_site.values())

    fitted.save(tmp_path / "fits.safetensors")
    Told.told.clear()
    again = FittedProxies.load(tmp_path / "fits.safetensors")
    assert [float(s.scale_) for f in again.values() for s in f.by_site.values()] == scales
    assert {(w.sites, w.reads, w.widths) for w in Told.told} == {
        ((one,), (Site(0, None, "middle"), one), ()),
        ((two,), (Site(2, None, "middle"), two), ()),
        ((query,), (query,), ()),
    }


class Steps(Simplification):
    """Adds the number of the layer; a stage of a chain."""

    name = "steps"
    _layer = 0

    def placed(self, where: Where) -> Self:
        placed = self.clone()
        placed._layer = where.sites[0].layer
        return placed

    def __call__(self, x: Tensor) -> Tensor:
        return x + self._layer


def test_the_stages_of_a_chain_are_told_too(
    model: am.Decoder, task: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setitem(SIMPLIFICATIONS, "steps", Steps)
    proxies = expand("svd(rank=8)+steps@{0,2}.residual")
    fitted = fit_on_task(model, proxies, task, 20)
    fitted.save(tmp_path / "fits.safetensors")
    x = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for some in (fitted, FittedProxies.load(tmp_path / "fits.safetensors")):
        for site, chain in some[proxies[0]].by_site.items():  # type: ignore[index]
            torch.testing.assert_close(chain(x), x + site.layer)


def test_what_reads_its_own_site_is_shown_what_stands_there(
    model: am.Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind another edit as well: the MLP of what it is given then."""
    by_site = {
        Site(2, None, "mlp"): Told().fit(torch.ones(1, 8), torch.ones(1, 8), torch.ones(1, 8))
    }
    assert float(next(iter(by_site.values())).scale_) == 0.0
    doubled = Told()
    doubled.scale_ = torch.tensor(2.0)
    tokens = WORD[0].numpy()
    before = {Site(0, None, "mlp"): lambda x: 0 * x}
    for also in ({}, {Site(0, None, "mlp"): by_site[Site(2, None, "mlp")]}):
        found = logits(
            model, BATCH, FittedProxy(Simplified(()), {**also, Site(2, None, "mlp"): doubled}, 0)
        )
        edits = {**(before if also else {}), Site(2, None, "mlp"): lambda x: 2 * x}
        expected = torch.from_numpy(forward(model, tokens, edits)["logits"]).float()
        torch.testing.assert_close(found[0, 0], expected, atol=1e-4, rtol=1e-4)


# --- what the model has there -------------------------------------------------------------------


class Watches(Simplification):
    """Keeps what it is shown, and gives zeros."""

    name = "watches"
    beside_model: ClassVar[bool] = True

    def __init__(self, *, label: int = 0) -> None:
        self.label = label
        self._seen: list[Tensor | None] = []

    def __call__(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def apply(self, x: Tensor, *, context: Context) -> Tensor:
        self._seen.append(context.original)
        return self(x)


def test_it_is_shown_what_the_model_has_there(model: am.Decoder) -> None:
    watches = {Site(0, None, "mlp"): Watches(), Site(2, 1, "value"): Watches()}
    proxy = FittedProxy(Simplified(()), watches, 0)
    both = logits(model, BATCH, proxy, led=True)
    keys = [LayerKind(0, "mlp"), LayerKind(2, "value")]
    with torch.inference_mode():
        ran = model.run(BATCH, record=keys)
        own = model.logits(ran.state)[0]
    clean = {keys[0]: ran.recorded[keys[0]][0], keys[1]: ran.recorded[keys[1]][0, :, 1]}
    for (site, watching), key in zip(watches.items(), keys, strict=True):
        (seen,) = watching._seen
        assert seen is not None and seen.abs().max() > 0.1, site
        torch.testing.assert_close(seen, clean[key])
    torch.testing.assert_close(both[0], own)  # the model ran along
    torch.testing.assert_close(logits(model, BATCH, proxy)[0], both[1])
    assert watches[Site(0, None, "mlp")]._seen[-1] is None  # as no model ran along
    assert not torch.allclose(both[0], both[1], atol=1e-2)


SIMPLER = "svd(rank=1)@0.mlp"
FROZEN = ["1.*.pattern", "*.*.pattern", "1-2.*.{query,key}", "2.mlp", "1.residual"]


@pytest.mark.parametrize("sites", FROZEN)
def test_what_is_frozen_is_the_models_own(model: am.Decoder, task: Task, sites: str) -> None:
    proxies = expand(f"{SIMPLER};frozen@{sites}")
    (proxy,) = fit_on_task(model, proxies, task, 20).values()
    found = logits(model, BATCH, proxy, led=True)[1]
    map_ = proxy.by_site[Site(0, None, "mlp")]
    for row, length in enumerate((8, 6)):
        tokens = WORD[row, :length].numpy()
        clean = forward(model, tokens, {})
        edits: dict[Site, Any] = {
            site: lambda x, site=site, clean=clean: clean[site]
            for site in proxy.by_site
            if site.kind != "mlp" or site.layer
        }
        edits[Site(0, None, "mlp")] = lambda x: map_(torch.from_numpy(x)).numpy()
        expected = torch.from_numpy(forward(model, tokens, edits)["logits"]).float()
        torch.testing.assert_close(found[row, :length], expected, atol=1e-3, rtol=1e-3)
        if sites == "1.residual":  # nothing before it matters
            torch.testing.assert_close(expected.double(), torch.from_numpy(clean["logits"]))


def test_everything_frozen_is_the_model(model: am.Decoder, task: Task) -> None:
    specs = with_identity([f"{SIMPLER};frozen@2.residual", SIMPLER])
    fitted = fit_on_task(model, specs, task, 20)
    split = task.splits["unseen_depth"].take(np.arange(8))
    made = [SimplifiedProxy(proxy, model) for proxy in fitted.values()]
    sums = list(audit_split(model, split, task.candidates, made).values())
    identity, frozen, simpler = (cell.sums[0].sum() for cell in sums)  # of same prediction
    assert float(identity) == float(frozen) > float(simpler)


def test_nothing_sees_its_future_beside_the_model(model: am.Decoder, task: Task) -> None:
    changed = Batch(BATCH.tokens.clone(), BATCH.mask)
    changed.tokens[:, 4:] = 1
    for sites in FROZEN:
        (proxy,) = fit_on_task(model, expand(f"{SIMPLER};frozen@{sites}"), task, 5).values()
        one, other = (logits(model, some, proxy, led=True)[1] for some in (BATCH, changed))
        torch.testing.assert_close(one[:, :4], other[:, :4])
        assert not torch.allclose(one[0, 4:], other[0, 4:])


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "bert"])
def test_in_a_stack_of_a_hugging_face_model(name: str) -> None:
    """Beside others it gives what it gives alone; and what is frozen is what the model has."""
    model = HuggingFace(make(name))
    tokens = torch.randint(3, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(1))
    batch = Batch.whole(tokens)
    specs = [
        "svd(rank=2)@0.mlp;frozen@*.*.pattern",
        "svd(rank=2)@0.mlp",
        "svd(rank=2)@0.mlp;frozen@1.*.{query,value}",
        "svd(rank=2)@0.mlp;frozen@2.residual",
        "identity",
    ]
    fitted = list(fit(model, expand(specs), {"train": [batch]}).values())
    together = logits(model, batch, *fitted, led=True)
    for copy, proxy in enumerate(fitted, start=1):
        alone = logits(model, batch, proxy, led=True)[-1]
        torch.testing.assert_close(together[copy], alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together[4], together[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[5], together[0], atol=1e-5, rtol=1e-5)
    apart = (together[1:4, None] - together[None, 1:4]).abs().amax((2, 3, 4))
    assert apart[~torch.eye(3, dtype=torch.bool)].min() > 0.01


def test_in_any_module() -> None:
    torch.manual_seed(1)
    module = large(Transformer()).eval()
    sites = {"*.residual": "blocks.*", "*.mlp": "blocks.*.mlp"}
    model = am.HookedModel(module, sites, context=CONTEXT)
    batch = Batch.whole(torch.randint(0, 20, (3, 9), generator=torch.Generator().manual_seed(1)))
    spec = "svd(rank=1)@0.residual;frozen@1.mlp"
    (proxy,) = fit(model, expand(spec), {"train": [batch]}).values()
    kept: list[Tensor] = []
    last = module.blocks[1].mlp
    hook = last.register_forward_hook(lambda m, i, o: kept.append(o.clone()))
    with torch.inference_mode():
        module(batch.tokens)
        hook.remove()
        svd = proxy.by_site[Site(0, None, "residual")]
        hooks = [
            module.blocks[0].register_forward_hook(lambda m, i, o: svd(o)),
            last.register_forward_hook(lambda m, i, o: kept[0]),
        ]
        expected = module(batch.tokens)
    for hook in hooks:
        hook.remove()
    found = logits(model, batch, proxy, led=True)[1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
