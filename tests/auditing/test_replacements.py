"""Replacements in a model: against its own parts, against NumPy and against plain hooks."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

import anamorph as am
from anamorph.auditing.audit import fit_on_task, with_identity
from anamorph.auditing.engine import audit_split
from anamorph.auditing.proxies import SimplifiedProxy
from anamorph.auditing.stacks import stacked_edits
from anamorph.errors import AnamorphError
from anamorph.faithfulness.sums import CellSums
from anamorph.models.base import Batch, Context
from anamorph.models.sites import Site
from anamorph.simplifications import (
    SIMPLIFICATIONS,
    FittedProxy,
    Linear,
    Replacement,
    Simplification,
    Simplified,
    expand,
    sites_of,
)
from anamorph.tasks import Split, Task
from plain import forward, small_model
from plain_modules import CONTEXT, VOCABULARY, Transformer, large


@pytest.fixture(scope="module")
def model(task: Task) -> am.Decoder:
    return small_model(task)


@pytest.fixture
def batch(task: Task) -> Batch:
    rng = np.random.default_rng(0)
    lengths = torch.tensor([9, 12, 5])
    mask = torch.arange(12) < lengths[:, None]
    return Batch(torch.from_numpy(rng.integers(1, len(task.vocabulary), (3, 12))), mask)


def logits(
    model: Any, batch: Batch, by_site: Mapping[Site, Simplification], at: Tensor | None = None
) -> Tensor:
    """Of the only copy, [batch, position or query, token]."""
    edits = stacked_edits([FittedProxy(Simplified(()), by_site, 0)])
    with torch.inference_mode():
        return model.logits(model.run(batch, edits, at=at).state)[0]  # type: ignore[no-any-return]


class TrueValue(Replacement):
    """What the decoder itself makes of the residual stream before: a head's values."""

    name = "truevalue"

    def __init__(self, *, model: am.Decoder, head: int) -> None:
        self.model, self.head = model, head

    def reads(self, site: Site) -> tuple[Site, ...]:
        return (Site(site.layer - 1, None, "residual"),)

    def __call__(self, x: Tensor) -> Tensor:
        block = self.model.blocks[1]
        dim = block.value.weight.shape[0] // 2
        rows = slice(self.head * dim, (self.head + 1) * dim)
        return block.norm_attention(x) @ block.value.weight[rows].T  # type: ignore[no-any-return]


def test_the_true_function_equals_the_model(model: am.Decoder, batch: Batch) -> None:
    whole = {Site(1, h, "value"): TrueValue(model=model, head=h) for h in range(2)}
    torch.testing.assert_close(logits(model, batch, whole), logits(model, batch, {}))
    other = {Site(1, 0, "value"): TrueValue(model=model, head=1)}
    assert not torch.allclose(logits(model, batch, other), logits(model, batch, {}), atol=1e-2)


class TrueMLP(Replacement):
    """What the decoder itself makes of an MLP's input."""

    name = "truemlp"

    def __init__(self, *, model: am.Decoder) -> None:
        self.model = model

    def reads(self, site: Site) -> tuple[Site, ...]:
        return (Site(site.layer, None, "mlp_input"),)

    def __call__(self, x: Tensor) -> Tensor:
        block = self.model.blocks[1]
        return block.down(nn.functional.gelu(block.up(x)))  # type: ignore[no-any-return]


def test_the_true_mlp_equals_the_model_also_behind_another_edit(
    model: am.Decoder, task: Task, batch: Batch
) -> None:
    svd = fit_on_task(model, expand("svd(rank=2)@1.*.value"), task, 9)
    for beside in ({}, next(iter(svd.values())).by_site):
        replaced = {**beside, Site(1, None, "mlp"): TrueMLP(model=model)}
        for at in (None, torch.tensor([[3, 8], [11, 2], [4, 4]])):
            expected = logits(model, batch, beside, at)
            torch.testing.assert_close(logits(model, batch, replaced, at), expected)


@pytest.mark.parametrize("layer", [0, 1])
def test_an_mlp_by_least_squares(model: am.Decoder, task: Task, split: Split, layer: int) -> None:
    (fitted,) = fit_on_task(model, expand(f"linear@{layer}.mlp"), task, 60).values()
    assert fitted.first_layer == layer
    read, written = Site(layer, None, "mlp_input"), Site(layer, None, "mlp")
    clean = [forward(model, tokens, {}) for tokens in list(task.train)[:60]]
    x, y = (np.concatenate([run[site] for run in clean]) for site in (read, written))
    solution = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0]
    made = fitted.by_site[written](torch.from_numpy(x))
    np.testing.assert_allclose(made, np.c_[x, np.ones(len(x))] @ solution, atol=1e-4)
    for tokens in list(split)[:4]:
        given = forward(model, tokens, {})[read]
        out = np.c_[given, np.ones(len(given))] @ solution
        expected = forward(model, tokens, {written: lambda x, out=out: out})["logits"]
        row = torch.from_numpy(np.asarray(tokens))[None].long()
        batch = Batch.whole(row)
        found = logits(model, batch, fitted.by_site)[0]
        np.testing.assert_allclose(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("before", ["", "svd(rank=2)@0.residual;", "pca(rank=3)@0.0.key;"])
def test_least_squares_are_those_of_numpy(
    model: am.Decoder, task: Task, split: Split, before: str
) -> None:
    """Fitted to what the clean model has; what is read is after the edits of the same proxy."""
    proxies = expand(f"{before}linear(source=residual)@1.mlp")
    fitted = fit_on_task(model, proxies, task, 60)[proxies[0]]
    read, written = Site(0, None, "residual"), Site(1, None, "mlp")
    clean = [forward(model, tokens, {}) for tokens in list(task.train)[:60]]
    x, y = (np.concatenate([run[site] for run in clean]) for site in (read, written))
    solution = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0]
    by_site = fitted.by_site
    np.testing.assert_allclose(by_site[written].weight_, solution[:-1], atol=1e-6)
    np.testing.assert_allclose(by_site[written].bias_, solution[-1], atol=1e-6)

    maps = {
        site: lambda x, map_=map_: map_(torch.from_numpy(x)).numpy()
        for site, map_ in by_site.items()
        if site != written
    }
    for tokens in list(split)[:4]:
        seen = forward(model, tokens, maps)[read]
        made = np.c_[seen, np.ones(len(seen))] @ solution
        edits = {**maps, written: lambda x, made=made: made}
        expected = forward(model, tokens, edits)["logits"]
        given = torch.from_numpy(np.asarray(tokens))[None].long()
        found = logits(model, Batch.whole(given), by_site)[0]
        np.testing.assert_allclose(found, expected, atol=1e-3, rtol=1e-3)


@pytest.fixture(scope="module")
def split(task: Task) -> Split:
    return task.splits["unseen_depth"].take(np.arange(8))


def audited(
    model: am.Decoder, task: Task, split: Split, fitted: list[FittedProxy]
) -> dict[Any, CellSums]:
    proxies = [SimplifiedProxy(proxy, model) for proxy in fitted]
    return dict(audit_split(model, split, task.candidates, proxies))


STACK = [
    "linear(source=residual)@1.mlp",
    "svd(rank=2)@1.mlp",
    "linear(source=mlp)@*.residual",
    "kmeans(clusters=3)@1.mlp;linear(source=residual)@1.*.value",
    "linear(source=value)@1.*.output;onehot@0.*.pattern",
    "svd(rank=2)@0.residual;linear(source=residual)@1.{mlp,residual}",
    "linear(source=residual, joint=true)@1.*.{query,value}",
]


def test_in_one_stack_each_gives_what_it_gives_alone(
    model: am.Decoder, task: Task, split: Split
) -> None:
    fitted = fit_on_task(model, with_identity(STACK), task, 40)
    together = audited(model, task, split, list(fitted.values()))
    for proxy, proxy_fitted in fitted.items():
        alone = audited(model, task, split, [proxy_fitted])[proxy]
        torch.testing.assert_close(together[proxy].sums, alone.sums, atol=1e-4, rtol=1e-4)
    plain = [FittedProxy(f.proxy, f.by_site, 0) for f in fitted.values()]
    from_the_start = audited(model, task, split, plain)
    for proxy, sums in from_the_start.items():
        torch.testing.assert_close(sums.sums[0], together[proxy].sums[0], atol=1e-4, rtol=1e-4)


def test_a_proxy_starts_at_the_first_layer_that_it_reads(model: am.Decoder, task: Task) -> None:
    fitted = fit_on_task(model, expand(STACK[:2]), task, 5)
    assert [proxy.first_layer for proxy in fitted.values()] == [0, 1]


class Shown(Replacement):
    """Keeps what it is shown, and writes the mean of two values of other heads."""

    name = "shown"
    kinds: ClassVar[frozenset[str]] = frozenset({"mlp"})
    seen: ClassVar[list[tuple[Tensor, Tensor, Context]]] = []

    def reads(self, site: Site) -> tuple[Site, ...]:
        return (Site(1, 0, "value"), Site(0, None, "mlp"))

    def __call__(self, value: Tensor, mlp: Tensor) -> Tensor:
        return torch.cat([value, value], -1) + mlp

    def apply(self, *read: Tensor, context: Context) -> Tensor:
        self.seen.append((*read, context))  # type: ignore[arg-type]
        return self(*read)


def test_in_the_last_layer_what_is_read_holds_the_positions_that_count(
    model: am.Decoder, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shown, "seen", [])
    at = torch.tensor([[3, 8], [11, 2], [4, 4]])
    some = logits(model, batch, {Site(1, None, "mlp"): Shown()}, at)
    every = logits(model, batch, {Site(1, None, "mlp"): Shown()})
    torch.testing.assert_close(some, every.take_along_dim(at[..., None], 1))
    (value, mlp, context), (value_, mlp_, _) = Shown.seen
    assert torch.equal(value, value_.take_along_dim(at[..., None], 1))
    assert torch.equal(mlp, mlp_.take_along_dim(at[..., None], 1))
    assert context.at is not None and torch.equal(context.at, at)
    assert torch.equal(context.tokens, batch.tokens)


def test_no_position_sees_its_future(model: am.Decoder, task: Task, batch: Batch) -> None:
    fitted = fit_on_task(model, expand(STACK), task, 20)
    changed = Batch(batch.tokens.clone(), batch.mask)
    changed.tokens[:, 4:] = 1
    for proxy in fitted.values():
        one, other = (logits(model, some, proxy.by_site) for some in (batch, changed))
        torch.testing.assert_close(one[:, :4], other[:, :4])
        assert not torch.equal(one[:, 4:], other[:, 4:])


def test_a_replacement_is_audited_stored_and_resumed(
    model: am.Decoder, task: Task, tmp_path: Any
) -> None:
    options: dict[str, Any] = {"sequences": 10, "fit_sequences": 20, "by": "all"}
    run = am.audit_given(model, task, STACK[:3], tmp_path / "run", **options)
    (run.path / "report.html").unlink()
    for file in (run.path / "seed-0").rglob("*.parquet"):
        file.unlink()
    assert am.audit_given(model, task, STACK[:3], run.path, **options).complete
    results = run.results.filter(pl.col("metric") == "same_prediction")
    assert set(results["method"]) == {"identity", "linear", "svd"}


# Any module


class ByHand(nn.Module):
    """The MLP of the second block swapped for an affine map of what the first block gives."""

    def __init__(self, module: Transformer, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.module, self.weight, self.bias = module, weight, bias

    def forward(self, tokens: Tensor) -> Tensor:
        kept: list[Tensor] = []
        hooks = [
            self.module.blocks[0].register_forward_hook(lambda m, i, o: kept.append(o.clone())),
            self.module.blocks[1].mlp.register_forward_hook(
                lambda m, i, o: kept[0] @ self.weight + self.bias
            ),
        ]
        try:
            return self.module(tokens)  # type: ignore[no-any-return]
        finally:
            for hook in hooks:
                hook.remove()


@pytest.fixture
def module() -> Iterator[Transformer]:
    torch.manual_seed(1)
    yield large(Transformer()).eval()


def test_of_a_hooked_model_it_equals_hooks_by_hand(module: Transformer) -> None:
    rng = np.random.default_rng(0)
    sites = {"*.residual": "blocks.*", "*.mlp": "blocks.*.mlp"}
    hooked = am.HookedModel(module, sites, context=CONTEXT)
    tokens = torch.from_numpy(rng.integers(0, VOCABULARY, (40, 10)))
    recorded: dict[str, Tensor] = {}
    hooks = [
        part.register_forward_hook(lambda m, i, o, name=name: recorded.update({name: o.clone()}))
        for name, part in (("x", module.blocks[0]), ("y", module.blocks[1].mlp))
    ]
    with torch.no_grad():
        module(tokens)
    for hook in hooks:
        hook.remove()
    x, y = (recorded[name].flatten(0, 1).double().numpy() for name in "xy")
    solution = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0]
    whole = Batch.whole(tokens)
    fitted = am.simplifications.fit(
        hooked, expand("linear(source=residual)@1.mlp"), {"train": [whole]}
    )
    (linear,) = next(iter(fitted.values())).by_site.values()
    np.testing.assert_allclose(linear(torch.from_numpy(x)), np.c_[x, np.ones(len(x))] @ solution)
    weight, bias = (torch.from_numpy(part).float() for part in (solution[:-1], solution[-1]))
    with torch.no_grad():
        expected = ByHand(module, weight, bias)(tokens[:5])
    few = Batch(tokens[:5], whole.mask[:5])
    found = logits(hooked, few, {Site(1, None, "mlp"): linear})
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# What cannot be


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("linear(source=residual)@0.mlp", r"reads -1\.residual, which the model does not have"),
        ("linear(source=nonsense)@1.mlp", r"must be one of query, .*; got 'nonsense'"),
        ("linear(source=pattern)@1.output", r"must be one of query, .*; got 'pattern'"),
        ("linear(source=query)@1.mlp", r"reads 1\.query, which the model does not have"),
        ("linear@1.*.pattern", "linear cannot be put at 1.0.pattern"),
    ],
)
def test_what_cannot_be_read(model: am.Decoder, task: Task, spec: str, message: str) -> None:
    with pytest.raises(AnamorphError, match=message):
        sites_of(expand(spec)[0], [Site(i, h, k) for i in range(2) for h, k in SITES])


SITES = [(0, "query"), (0, "pattern"), (None, "mlp"), (None, "residual")]


def test_what_is_not_computed_before(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ahead(Replacement):
        name = "ahead"

        def reads(self, site: Site) -> tuple[Site, ...]:
            return (Site(site.layer, None, "residual"),)

        def __call__(self, x: Tensor) -> Tensor:
            return x

    monkeypatch.setitem(SIMPLIFICATIONS, "ahead", Ahead)
    sites = [Site(i, h, k) for i in range(2) for h, k in SITES]
    with pytest.raises(AnamorphError, match=r"at 1\.mlp, ahead reads 1\.residual, which is not"):
        sites_of(expand("ahead@1.mlp")[0], sites)
    with pytest.raises(AnamorphError, match="as many points; got 3, 4"):
        Linear().fit(torch.ones(3, 2), torch.ones(4, 2))
