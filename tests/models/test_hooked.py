"""Any module through hooks: the laws, against other ways to the same numbers, and the errors."""

import copy
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import transformers
from torch import Tensor, nn

import anamorph as am
import running
from anamorph.auditing.audit import fit_on_task, with_identity
from anamorph.auditing.engine import Settings, audit_split
from anamorph.auditing.proxies import SimplifiedProxy
from anamorph.auditing.stacks import stacked_edits
from anamorph.faithfulness.metrics import metric_names
from anamorph.models.base import Batch, LayerKind
from huggingface_models import VOCABULARY, make
from plain_modules import CONTEXT, Mixer, Recurrent, Transformer, large
from random_tasks import random_task

TOKENS = torch.randint(0, 23, (3, 11), generator=torch.Generator().manual_seed(1))
FULL = Batch.whole(TOKENS)
QKV = "blocks.*.attention.qkv"
SITES = {
    "*.*.query": am.Hook(QKV, heads=4, columns=(0, 16)),
    "*.*.key": am.Hook(QKV, heads=2, columns=(16, 24)),
    "*.*.value": am.Hook(QKV, heads=2, columns=(24, 32)),
    "*.*.pattern": am.Hook("blocks.*.attention.weights"),
    "*.*.output": am.Hook("blocks.*.attention.out", heads=4, side="input"),
    "*.residual": "blocks.*",
    "*.mlp": "blocks.*.mlp",
}
FUSED = "transformer.h.*.attn.c_attn"
GPT2 = {
    "*.*.query": am.Hook(FUSED, heads=4, part=(0, 3)),
    "*.*.key": am.Hook(FUSED, heads=4, part=(1, 3)),
    "*.*.value": am.Hook(FUSED, heads=4, part=(2, 3)),
    "*.*.output": am.Hook("transformer.h.*.attn.c_proj", heads=4, side="input"),
    "*.residual": "transformer.h.*",
    "*.mlp": "transformer.h.*.mlp",
}


def transformer(**shape: Any) -> Any:
    return large(Transformer(**shape))


def run(
    model: am.HookedModel, edits: Any = None, record: Any = None, batch: Batch = FULL
) -> Tensor:
    return running.run(model, batch, edits, record)


# --- the laws -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 3])
def test_a_transformer_keeps_every_law(layers: int) -> None:
    model = am.HookedModel(transformer(layers=layers), SITES, context=CONTEXT)
    assert model.causal
    assert (model.layers, model.vocabulary) == (layers, 23)
    assert len(model.sites) == layers * (4 + 2 + 2 + 4 + 4 + 1 + 1)
    am.check_model(model, TOKENS)


def test_a_model_that_sees_behind_keeps_every_law_if_it_is_given_the_mask() -> None:
    module = transformer(causal=False)
    model = am.HookedModel(module, SITES, lambda m, tokens, mask: m(tokens, mask))
    assert not model.causal
    am.check_model(model, TOKENS)


def test_without_the_mask_it_takes_no_padding() -> None:
    model = am.HookedModel(transformer(causal=False), SITES)
    assert torch.isfinite(run(model)).all()
    mask = FULL.mask.clone()
    mask[0, -1] = False
    with pytest.raises(am.AnamorphError, match="Padding changes what Transformer says"):
        model.start(Batch(TOKENS, mask))
    with pytest.raises(AssertionError, match="padding changes nothing"):
        am.check_model(model, TOKENS)


@pytest.mark.parametrize(
    ("module", "sites"),
    [
        (Recurrent(), {"*.residual": "cells.*", "1.mlp": am.Hook("head", side="input")}),
        (Mixer(), {"*.residual": "after.*", "*.mlp": "mlp.*"}),
    ],
)
def test_what_is_no_transformer_keeps_every_law(module: nn.Module, sites: Any) -> None:
    model = am.HookedModel(large(module), sites, context=CONTEXT)
    am.check_model(model, TOKENS)


def test_gpt2_and_neox_keep_every_law() -> None:
    am.check_model(am.HookedModel(make("gpt2"), GPT2), TOKENS)
    neox = "gpt_neox.layers.*.attention.query_key_value"
    hook = {"heads": 4, "within_heads": True}
    sites: dict[str, Any] = {
        f"*.*.{kind}": am.Hook(neox, part=(i, 3), **hook)
        for i, kind in enumerate(("query", "key", "value"))
    }
    model = am.HookedModel(make("neox"), sites)
    am.check_model(model, TOKENS)
    record: Any = {LayerKind(1, "value"): None}
    run(model, record=record)
    theirs: Any = {LayerKind(1, "value"): None}
    run(am.HuggingFace(make("neox")), record=theirs)
    torch.testing.assert_close(record[LayerKind(1, "value")], theirs[LayerKind(1, "value")])


# --- the same numbers in another way --------------------------------------------------------------


def whole(results: pl.DataFrame, metric: str) -> dict[tuple[str, str], float]:
    rows = results.filter(pl.col("seed").is_null() & pl.col("facet").is_null(), metric=metric)
    return {(r["simplification"], r["split"]): r["value"] for r in rows.to_dicts()}


SIMPLIFY = [
    "svd(rank=[1,4])@1.*.{query,key}",
    "svd(rank=2)@{0,2}.2.{query,key}",
    "kmeans(clusters=3)@*.1.value;svd(rank=3)@2.3.output",
    "svd(rank=4)@*.residual",
    "pca(rank=6)@1.mlp",
]


def test_proxies_of_gpt2_are_those_of_its_own_blocks() -> None:
    """All in one stack, with the fits of each model itself."""
    task, proxies = random_task(VOCABULARY), with_identity(SIMPLIFY)[1:]
    logits = []
    for model in (am.HookedModel(make("gpt2"), GPT2, context=32), am.HuggingFace(make("gpt2"))):
        fitted = fit_on_task(model, proxies, task, 20)
        logits.append(run(model, stacked_edits([fitted[p] for p in proxies])))
        assert len(logits[-1]) == 6
        assert ((logits[-1] - run(model)).abs().amax((1, 2, 3)) > 0.01).all()
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


def test_audits_of_gpt2_are_those_of_its_own_blocks() -> None:
    task = random_task(VOCABULARY)
    mine, theirs = (
        am.audit(model, task, SIMPLIFY).results
        for model in (am.HookedModel(make("gpt2"), GPT2), am.HuggingFace(make("gpt2")))
    )
    names = metric_names(attention=False)
    assert not {m for m in mine["metric"].unique() if "attention" in m}
    for metric in names:
        expected = whole(theirs, metric)
        assert len(expected) == 14
        assert whole(mine, metric) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("module", "site"), [(Recurrent, "cells.*"), (Mixer, "after.*")])
def test_audits_of_what_is_no_transformer(module: Any, site: str) -> None:
    model = am.HookedModel(large(module()), {"*.residual": site}, context=CONTEXT)
    audit = am.audit(model, random_task(23), ["svd(rank=[1,16])@*.residual"])
    same = whole(audit.results, "same_prediction")
    assert same["svd(rank=1)@*.residual", "far"] < 0.9
    assert same["svd(rank=16)@*.residual", "far"] == same["identity", "far"] == 1


def test_recorded_activations_of_gpt2_are_those_of_its_own_blocks() -> None:
    keys = [
        LayerKind(layer, kind) for layer in range(3) for kind in ("query", "key", "residual", "mlp")
    ]
    mine: Any = dict.fromkeys(keys)
    theirs: Any = dict.fromkeys(keys)
    run(am.HookedModel(make("gpt2"), GPT2), record=mine)
    run(am.HuggingFace(make("gpt2")), record=theirs)
    for key in keys:
        torch.testing.assert_close(mine[key], theirs[key], atol=1e-5, rtol=1e-5)


def test_a_projected_key_head_is_one_folded_into_the_weights() -> None:
    module = transformer().eval()
    axes = torch.linalg.qr(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)))[0]
    folded = copy.deepcopy(module)
    qkv = folded.blocks[1].attention.qkv
    rows = slice(16 + 4, 16 + 8)  # the second key head
    with torch.inference_mode():
        qkv.weight[rows] = axes @ axes.T @ qkv.weight[rows]
        qkv.bias[rows] = axes @ axes.T @ qkv.bias[rows]
        expected = folded(TOKENS)

    def project(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :, 1] = x[:, :, 1] @ axes @ axes.T
        return x

    logits = run(am.HookedModel(module, SITES), {LayerKind(1, "key"): project})
    torch.testing.assert_close(logits[0], expected, atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        assert (module(TOKENS) - expected).abs().max() > 0.01


def test_heads_may_stand_on_an_axis_of_their_own() -> None:
    class Normed(nn.Module):
        def __init__(self, axis: int) -> None:
            super().__init__()
            self.embed, self.norm = nn.Embedding(23, 16), nn.LayerNorm(4)
            self.axis, self.head = axis, nn.Linear(16, 23)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embed(tokens).unflatten(-1, (4, 4))
            x = self.norm(x.transpose(1, 2)).transpose(1, 2) if self.axis == 1 else self.norm(x)
            return self.head(x.flatten(2))

    recorded = []
    for axis in (1, 2):
        torch.manual_seed(0)
        model = am.HookedModel(Normed(axis), {"0.*.query": am.Hook("norm", head_axis=axis)})  # type: ignore[arg-type]
        am.check_model(model, TOKENS)
        record: Any = {LayerKind(0, "query"): None}
        run(model, record=record)
        assert record[LayerKind(0, "query")].shape == (1, 3, 4, 11, 4)
        recorded.append(record[LayerKind(0, "query")])
    torch.testing.assert_close(*recorded)


def test_one_forward_for_the_model_and_one_for_a_stack() -> None:
    """Also where patterns of several layers are recorded, and where a stack edits several."""
    calls = []

    def forward(module: Any, tokens: Tensor, mask: Tensor) -> Tensor:
        calls.append(len(tokens))
        return module(tokens)  # type: ignore[no-any-return]

    task = random_task(23, 6)
    model = am.HookedModel(transformer(), SITES, forward)
    proxies = with_identity(
        ["svd(rank=[1,2,3])@*.*.{query,key}", "onehot@*.*.pattern", "svd(rank=2)@1.mlp"]
    )
    fitted = fit_on_task(model, proxies, task, 6)
    calls.clear()
    ready = [SimplifiedProxy(fitted[p], model) for p in proxies]
    audit_split(model, task.splits["far"], task.candidates, ready)
    assert len(calls) % 3 == 0  # as many in every batch
    assert sum(calls) == 6 + 6 + 6 * 4  # the model; MLP proxy; three ranks and one-hot


def test_numbers_do_not_depend_on_threads_and_batches() -> None:
    task = random_task(23)
    model = am.HookedModel(transformer(), SITES)
    proxies = with_identity(["svd(rank=[1,2])@*.*.{query,key}", "onehot@1.*.pattern"])
    fitted = fit_on_task(model, proxies, task, 20)
    ready = [SimplifiedProxy(fitted[p], model) for p in proxies]
    found = []
    for threads, tokens, memory in ((1, 10_000, 2**23), (2, 30, 2**23), (2, 60, 1)):
        torch.set_num_threads(threads)
        settings = Settings(batch_tokens=tokens, memory=memory)
        cells = audit_split(model, task.splits["far"], task.candidates, ready, settings)
        found.append(torch.stack([cells[p].sums for p in proxies]))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, atol=1e-4, rtol=1e-5)


# --- run folders ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_report")
def test_into_a_run_folder(tmp_path: Path) -> None:
    task, simplify = random_task(23), ["svd(rank=[1,4])@1.*.{query,key}"]
    model = am.HookedModel(transformer(), SITES, context=CONTEXT)
    done = am.audit_given(model, task, simplify, tmp_path / "run", by="head")
    names = done.results["simplification"].unique().to_list()
    assert "svd(rank=1)@1.3.query;svd(rank=1)@1.1.key" in names  # it reads the second key head
    assert done.spec["model"]["hooks"]["1.residual"] == "Hook('blocks.1')"
    assert (done.spec["model"]["heads"], done.spec["model"]["key_heads"]) == (4, 2)
    other = am.HookedModel(transformer(), {**SITES, "*.mlp": "blocks.*.mlp.2"}, context=CONTEXT)
    with pytest.raises(am.AnamorphError, match="another specification"):
        am.audit_given(other, task, simplify, tmp_path / "run")
    with pytest.raises(am.AnamorphError, match=r"sequence of 12 tokens.*context is 8"):
        am.audit_given(am.HookedModel(transformer(), SITES, context=8), task, simplify, "nowhere")


def test_sweeps_without_query_sites() -> None:
    only = {name: SITES[name] for name in ("*.*.output", "*.residual")}
    model = am.HookedModel(transformer(), only)
    assert len(am.sweep(["svd(rank=2)@1.*.output"], model.sites)) == 4
    bare = am.HookedModel(transformer(), {"*.residual": "blocks.*"})
    with pytest.raises(am.AnamorphError, match="all heads share"):
        am.sweep(["svd(rank=2)@1.residual"], bare.sites)


# --- the module stays as it was -------------------------------------------------------------------


def test_leaves_the_module_as_it_was() -> None:
    module = transformer().train()
    module.blocks[0].eval()

    def look() -> list[Any]:
        return [
            (m.training, sorted(m.__dict__), len(m._forward_hooks), len(m._forward_pre_hooks))
            for m in module.modules()
        ]

    before, weights = look(), copy.deepcopy(module.state_dict())
    model = am.HookedModel(module, SITES)
    run(model, {LayerKind(0, "query"): torch.tanh, LayerKind(1, "residual"): torch.tanh})
    with pytest.raises(ZeroDivisionError):
        run(model, {LayerKind(1, "mlp"): lambda x: 1 / 0})
    with pytest.raises(am.AnamorphError, match=r"edit of 0\.mlp gives \[1\]"):
        run(model, {LayerKind(0, "mlp"): lambda x: x.new_zeros(1)})
    with pytest.raises(am.AnamorphError, match="never fired"):
        am.HookedModel(module, {"0.mlp": "drop", "1.mlp": "blocks"})
    assert look() == before
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())


# --- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ({}, "at least one site"),
        ({"0.residual": "block.0"}, r"no such submodule; similar ones are: blocks\.0"),
        ({"*.residual": "layers.*"}, r"no submodule is called so with a number"),
        ({"*.residual": "blocks.0"}, r"put a \* in its place for the layer"),
        ({"residual": "blocks.0"}, "Cannot read the site 'residual'"),
        ({"0.query": "blocks.0"}, "Cannot read the site '0.query'"),
        ({"0.*.residual": "blocks.0"}, "Cannot read the site"),
        ({"00.residual": "blocks.0"}, "Cannot read the site '00.residual'"),
        ({"\uff10.residual": "blocks.0"}, "Cannot read the site"),
        ({"0-1.residual": "blocks.0"}, "Cannot read the site '0-1.residual'"),
        ({"0.hidden": "blocks.0"}, "with a kind out of residual, mlp"),
        ({"*.mlp": "blocks.*.mlp", "1.mlp": "blocks.1"}, "of layer 1, which has a hook already"),
        ({"0.*.query": "blocks.0.attention.qkv"}, r"0\.\*\.query does not fit.*heads=4"),
        ({"0.*.query": am.Hook("blocks.0.mlp", heads=3)}, "16 columns.*into 3 heads"),
        ({"0.*.query": am.Hook("blocks.0", heads=2, part=(0, 3))}, "into 3 parts"),
        ({"0.mlp": am.Hook("blocks.0", columns=(8, 24))}, "has 16 columns, not 24"),
        ({"0.*.pattern": am.Hook("blocks.0", heads=4)}, r"\[batch, head, query, key\]"),
        ({"0.*.query": am.Hook("blocks.0.attention.weights", heads=2)}, "has 4 heads on axis 1"),
        ({"0.mlp": "blocks.0.attention.weights"}, r"expected \[batch, position, width\]"),
    ],
)
def test_sites_that_cannot_be(sites: Any, message: str) -> None:
    with pytest.raises(am.AnamorphError, match=message):
        am.HookedModel(transformer(), sites)


@pytest.mark.parametrize(
    "given",
    [
        {"side": "middle"},
        {"head_axis": 3},
        {"heads": 0},
        {"heads": 2.5},
        {"heads": float("nan")},
        {"heads": True},
        {"part": (0, 2.5)},
        {"part": (0, 1, 2)},
        {"columns": (0, float("nan"))},
        {"part": (3, 3)},
        {"columns": (4, 4)},
        {"part": (0, 3), "columns": (0, 4)},
    ],
)
def test_hooks_that_cannot_be(given: Any) -> None:
    with pytest.raises(am.AnamorphError, match=r"Hook\('blocks.0', "):
        am.Hook("blocks.0", **given)


def test_a_submodule_whose_weights_another_uses_never_fires() -> None:
    """As in torch's own encoder layer, which hands `out_proj.weight` to a function."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    module = nn.Sequential(nn.Embedding(23, 16), layer, nn.Linear(16, 23))
    hook = am.Hook("1.self_attn.out_proj", heads=2, side="input")
    with pytest.raises(
        am.AnamorphError, match=r"0\.\*\.output never fired.*'1.self_attn.out_proj'"
    ):
        am.HookedModel(module, {"0.*.output": hook})
    model = am.HookedModel(module, {"0.residual": "1", "0.mlp": "1.linear2"})
    torch.testing.assert_close(run(model)[0], module.eval()(TOKENS))


def test_a_block_that_runs_twice_is_no_site() -> None:
    module = transformer(layers=1)
    module.blocks.append(module.blocks[0])
    with pytest.raises(am.AnamorphError, match=r"0\.residual fired more than once.*'blocks.0'"):
        am.HookedModel(module, {"*.residual": "blocks.*"})


def test_a_block_that_sometimes_does_not_run_is_found_when_it_does_not() -> None:
    class Skips(Transformer):
        skip = False

        def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
            x = self.embed(tokens)
            if not self.skip:
                x = self.drop(x)
            return self.head(x)

    module: Any = large(Skips())
    model = am.HookedModel(module, {"0.residual": "drop"})
    module.skip = True
    with pytest.raises(am.AnamorphError, match=r"0\.residual never fired.*'drop'"):
        run(model, {LayerKind(0, "residual"): torch.tanh})
    assert torch.isfinite(run(model)).all()  # nothing is asked of it


class _Wrong(nn.Module):
    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.embed, self.head, self.rule = nn.Embedding(23, 4), nn.Linear(4, 23), forward

    def forward(self, tokens: Tensor) -> Any:
        return self.rule(self, tokens)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda m, t: m.head(m.embed(t))[:, -1:], r"gives \[2, 1, 23\] for tokens \[2, 6\]"),
        (lambda m, t: {"scores": m.head(m.embed(t))}, "is of type dict; expected a tensor"),
        (lambda m, t: m.head(m.embed(t.float())), r"cannot run on token ids \[2, 6\]: RuntimeErr"),
        (lambda m, t: m.head(m.embed(t) + torch.rand(1)), "gives other logits when it runs again"),
    ],
)
def test_forwards_that_cannot_be(forward: Any, message: str) -> None:
    with pytest.raises(am.AnamorphError, match=message):
        am.HookedModel(_Wrong(forward), {"0.residual": "embed"})


def test_batches_that_cannot_be() -> None:
    model = am.HookedModel(transformer(), SITES, context=10)
    with pytest.raises(am.AnamorphError, match=r"11 tokens does not fit.*context of 10"):
        model.start(FULL)
    left = torch.ones(2, 4).bool()
    left[0, 0] = False
    with pytest.raises(am.AnamorphError, match="at the right"):
        model.start(Batch(TOKENS[:2, :4], left))


# --- the documentation ----------------------------------------------------------------------------


def test_the_example_in_the_documentation_runs() -> None:
    text = (Path(__file__).parents[2] / "docs/own_models.md").read_text("utf-8")
    (block,) = re.findall(r"^```python\n([^`]*HookedModel[^`]*)^```", text, flags=re.MULTILINE)
    size = {"vocab_size": 61, "n_embd": 768, "n_layer": 2, "n_head": 12, "n_positions": 32}
    config = transformers.GPT2Config(**size, bos_token_id=1, eos_token_id=2)
    names = {"am": am, "gpt2": transformers.GPT2LMHeadModel(config), "tokens": TOKENS}
    exec(compile(block, "own_models.md", "exec"), names)
    assert len(names["model"].sites) == 2 * (3 * 12 + 2)
