"""Proxies with other weights, against copies of models whose weights were set by hand."""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from polars.testing import assert_frame_equal
from torch import Tensor, nn

import anamorph as am
from anamorph.auditing import works
from anamorph.auditing.audit import fit_on_task, with_identity
from anamorph.auditing.changed import in_place
from anamorph.errors import AnamorphError
from anamorph.models.base import Batch, Model
from anamorph.models.hooked.hooks import Hook
from anamorph.models.huggingface.model import HuggingFace
from anamorph.models.sites import Site
from anamorph.simplifications import AnotherModel, FittedProxies, Simplified, fit, parse
from anamorph.simplifications.points import Lengths
from anamorph.simplifications.seen_part import SeenPart
from anamorph.simplifications.statistics.base import can_merge
from anamorph.simplifications.weight_fitting import WeightFits
from anamorph.tasks import Task
from huggingface_models import make
from plain import small_model

SIZES = {"layers": 3, "heads": 2, "width": 32, "mlp": 48}


def decoder(task: Task, **shape: Any) -> am.Decoder:
    return small_model(task, **SIZES | shape)


def batch(lengths: tuple[int, ...] = (9, 6, 9)) -> Batch:
    """Right-padded sequences; what stands behind their ends is not to count."""
    tokens = torch.randint(3, 8, (len(lengths), max(lengths)), generator=torch.manual_seed(3))
    return Batch(tokens, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])


def simplified(spec: str) -> Simplified:
    (proxy,) = parse(spec)
    assert isinstance(proxy, Simplified)
    return proxy


@torch.inference_mode()
def logits_with(model: Model, spec: str, data: Batch | None = None) -> Tensor:
    """[batch, position, vocabulary] of a model with a proxy in place."""
    proxy = simplified(spec)
    fitted = fit(model, [proxy], {"train": [data or batch()]})[proxy]
    with model.session(), in_place(model, fitted) as edits:
        state = model.run(batch(), edits).state
    return model.logits(state)[0]


# By hand: the weight of every module of a kind, [out, in] in NumPy, changed row by row or whole.

Change = Callable[[np.ndarray], np.ndarray]


def low_rank(w: np.ndarray, rank: int = 3) -> np.ndarray:
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def halved(w: np.ndarray) -> np.ndarray:
    """Without the half of each row that is smallest."""
    new = w.copy()
    for row in new:
        row[np.argsort(np.abs(row), kind="stable")[: len(row) // 2]] = 0
    return new


def set_weight(module: Any, change: Change, turned: bool = False) -> None:
    weight = module.weight.detach()
    new = change((weight.T if turned else weight).double().numpy())
    weight.copy_(torch.from_numpy(new.T if turned else new))


def in_parts(change: Change, rows: list[np.ndarray]) -> Change:
    """Of a matrix that holds several, each by itself."""

    def changed(w: np.ndarray) -> np.ndarray:
        new = np.empty_like(w)
        for some in rows:
            new[some] = change(w[some])
        return new

    return changed


def change_gpt2(model: Any, layer: int, change: Change, kind: str) -> None:
    block = model.transformer.h[layer]
    if kind == "mlp":
        set_weight(block.mlp.c_fc, change, turned=True)
        set_weight(block.mlp.c_proj, change, turned=True)
    else:
        thirds = np.split(np.arange(96), 3)
        set_weight(block.attn.c_attn, in_parts(change, thirds), turned=True)
        set_weight(block.attn.c_proj, change, turned=True)


def change_llama(model: Any, layer: int, change: Change, kind: str) -> None:
    block = model.model.layers[layer]
    parts = block.mlp if kind == "mlp" else block.self_attn
    for module in parts.children():
        if isinstance(module, nn.Linear):
            set_weight(module, change)


def change_neox(model: Any, layer: int, change: Change, kind: str) -> None:
    block = model.gpt_neox.layers[layer]
    if kind == "mlp":
        set_weight(block.mlp.dense_h_to_4h, change)
        set_weight(block.mlp.dense_4h_to_h, change)
    else:  # rows of a head: its query, key and value
        rows = np.arange(96).reshape(4, 3, 8)
        each = [rows[:, part].ravel() for part in range(3)]
        set_weight(block.attention.query_key_value, in_parts(change, each))
        set_weight(block.attention.dense, change)


HAND = {"gpt2": change_gpt2, "llama": change_llama, "neox": change_neox}
SPECS: dict[str, list[tuple[int, str, Change]]] = {
    "low_rank(rank=3)@1.attention;low_rank(rank=3)@{1,2}.mlp": [
        (1, "attention", low_rank),
        (1, "mlp", low_rank),
        (2, "mlp", low_rank),
    ],
    "prune(density=0.5)@2.{attention,mlp}": [(2, "attention", halved), (2, "mlp", halved)],
}


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", HAND)
@torch.no_grad()
def test_as_a_copy_changed_by_hand(name: str, spec: str) -> None:
    module = make(name)
    hand: Any = copy.deepcopy(module).eval()
    for layer, kind, change in SPECS[spec]:
        HAND[name](hand, layer, change, kind)
    before = {key: x.clone() for key, x in module.state_dict().items()}
    found = logits_with(HuggingFace(module), spec)
    here = batch()
    for row, mask in enumerate(here.mask):
        expected = hand(here.tokens[row : row + 1, mask]).logits[0]
        torch.testing.assert_close(found[row, mask], expected, atol=2e-5, rtol=2e-5)
        own = module(here.tokens[row : row + 1, mask]).logits[0]
        assert (expected - own).abs().max() > 1e-2
    assert_untouched(module, before)


def assert_untouched(module: nn.Module, before: dict[str, Tensor]) -> None:
    assert all(torch.equal(x, before[key]) for key, x in module.state_dict().items())
    for part in module.modules():
        assert not part._forward_pre_hooks and "forward" not in vars(part)


@torch.no_grad()
def test_a_decoder_as_a_copy_changed_by_hand(task: Task) -> None:
    model = decoder(task)
    hand = copy.deepcopy(model)
    for block in hand.blocks:
        for name, part in block.named_children():
            if name in ("up", "down", "query", "key", "value", "output"):
                set_weight(part, halved)
    before = {key: x.clone() for key, x in model.state_dict().items()}
    found = logits_with(model, "prune(density=0.5)@*.{attention,mlp}")
    mask = batch().mask
    torch.testing.assert_close(found[mask], hand(batch().tokens)[mask], atol=1e-4, rtol=1e-5)
    assert_untouched(model, before)


@torch.no_grad()
def test_a_hooked_module_as_a_copy_changed_by_hand(task: Task) -> None:
    module = decoder(task)
    model = am.HookedModel(module, {"*.mlp": "blocks.*.down", "*.residual": "blocks.*.down"})
    hand = copy.deepcopy(module)
    for layer in (1, 2):
        set_weight(hand.blocks[layer].down, halved)  # type: ignore[union-attr]
    found = logits_with(model, "prune(density=0.5)@{1,2}.mlp")
    mask = batch().mask
    torch.testing.assert_close(found[mask], hand(batch().tokens)[mask], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "opt", "bert"])
@torch.no_grad()
def test_the_scores_of_a_head_are_of_low_rank(name: str) -> None:
    """Patterns with W_Q W_Kᵀ replaced, biases left: softmax of x A y + b_q W_K y."""
    model = HuggingFace(make(name))
    query, key = model.matrices(Site(1, 3, "pattern"))
    given: dict[nn.Module, Tensor] = {}
    with ExitStack() as hooks:
        for m in (query, key):
            handle = m.inputs.register_forward_pre_hook(
                lambda module, x: given.__setitem__(module, x[0].double())
            )
            hooks.callback(handle.remove)
        record = Site(1, 3, "pattern")
        whole = batch((9, 9, 9))
        with torch.inference_mode():
            proxy = simplified("low_rank(rank=2)@1.3.pattern")
            fitted = fit(model, [proxy], {"train": []})[proxy]
            with model.session(), in_place(model, fitted) as edits:
                pattern = model.run(whole, edits, [record]).recorded[record][0]
    x, w_q, w_k = given[query.inputs], query.read(), key.read()
    assert query.rows is not None
    bias = query.module.bias.double()[query.rows]  # type: ignore[union-attr, operator, index]
    product = torch.from_numpy(low_rank((w_q.T @ w_k).numpy(), 2))
    scores = (x @ product @ x.mT + (bias @ w_k @ x.mT)[:, None]) / w_q.shape[0] ** 0.5
    if model.causal:
        scores = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(pattern.double(), scores.softmax(-1), atol=1e-5, rtol=1e-4)


NOTHING = ["prune(density=1)@*.{attention,mlp}", "low_rank(rank=64)@*.{attention,mlp}"]
NOTHING += ["low_rank(rank=64,whitened=true)@*.mlp", "prune(density=1,by=wanda)@*.mlp"]


@pytest.mark.parametrize("spec", [*NOTHING, "low_rank(rank=16,whitened=true)@*.*.pattern"])
def test_law_2_what_changes_nothing_is_the_model(task: Task, spec: str) -> None:
    model = decoder(task)
    with torch.inference_mode():
        own = model.logits(model.run(batch()).state)[0]
    assert torch.equal(logits_with(model, spec), own)


def test_law_2_eight_bits_are_nearly_the_model(task: Task) -> None:
    model = decoder(task)
    found = [
        logits_with(model, f"quantize(bits={n},group=8)@*.{{attention,mlp}}") for n in (8, 4, 2)
    ]
    with torch.inference_mode():
        own = model.logits(model.run(batch()).state)[0]
    mask = batch().mask
    errors = [float((x - own)[mask].norm() / own[mask].norm()) for x in found]
    assert errors[0] < 0.02 < errors[1] < errors[2]


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox"])
@torch.no_grad()
def test_inputs_are_those_that_plain_hooks_see_without_padding(name: str) -> None:
    module = make(name)
    model = HuggingFace(module)
    (attachment,) = simplified("low_rank(rank=3,whitened=true)@1.{attention,mlp}").attachments
    sites = [Site(1, None, "attention"), Site(1, None, "mlp")]
    fits = WeightFits(model, {attachment: sites}, fed=can_merge)
    part = SeenPart(Lengths())
    parts = [batch(), batch((5, 9))]
    with torch.inference_mode():
        for some in parts:
            rows = some.mask.flatten().nonzero()[:, 0]
            with fits.watching(some, rows, rows, part), model.session():
                model.run(some)
    for site in sites:
        for matrix in model.matrices(site):
            seen: list[Tensor] = []
            handle = matrix.module.register_forward_pre_hook(
                lambda module, x, seen=seen: seen.append(x[0].double().flatten(0, -2))
            )
            for some in parts:
                for tokens, mask in zip(some.tokens, some.mask, strict=True):
                    module(tokens[None, mask])
            handle.remove()
            points = torch.cat(seen)
            assert len(points) == 9 + 6 + 9 + 5 + 9
            (moments,) = part.statistics[fits.names[matrix.inputs]].values()
            second: Tensor = moments.second  # type: ignore[attr-defined]
            torch.testing.assert_close(second, points.T @ points / 38, atol=1e-5, rtol=1e-4)


def test_an_audit_says_what_one_of_a_changed_copy_says(task: Task) -> None:
    model = decoder(task, layers=2)
    hand = copy.deepcopy(model)
    with torch.no_grad():
        for block in hand.blocks:
            set_weight(block.up, halved)
            set_weight(block.down, halved)
    spec = "prune(density=0.5)@*.mlp"
    found = am.audit(model, task, [spec, AnotherModel("hand", hand)], sequences=20)
    rows = {
        name: found.results.filter(simplification=name).sort("split", "facet", "level", "metric")
        for name in (spec, "model(hand)")
    }
    values = {name: rows[name]["value"].to_numpy() for name in rows}
    assert len(values[spec]) > 50
    np.testing.assert_allclose(values[spec], values["model(hand)"], atol=1e-5)
    size = rows[spec].select("size", "size_name", "method").unique().row(0)
    assert size == (0.5, "density", "prune")


def test_law_4_threads_change_nothing(task: Task) -> None:
    model, specs = decoder(task, layers=2), ["prune(density=0.5,by=wanda)@*.mlp"]
    found = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        found.append(am.audit(model, task, specs, sequences=20, fit_sequences=20).results)
    assert_frame_equal(found[0], found[1], check_exact=True)
    assert_frame_equal(found[0], found[2], check_exact=True)


def test_they_stand_together_while_their_matrices_fit(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And have the same sums, to the byte, as alone."""
    specs = ["svd(rank=[2,4])@1.*.key", "prune(density=[0.1,0.5,0.7])@*.mlp", "model(a)"]
    model, svd = decoder(task), ("svd(rank=2)@1.*.key", "svd(rank=4)@1.*.key", "identity")
    dense = [f"prune(density={density})@*.mlp" for density in (0.1, 0.5, 0.7)]

    def groups(*bounds: int) -> list[tuple[str, ...]]:
        for name, bound in zip(("WEIGHTS", "CHANGED"), bounds, strict=True):
            monkeypatch.setattr(works, name, bound)
        found = works.plan(with_identity(specs), model, ["iid", "ood"])
        assert [w.split for w in found] == ["iid", "ood"] * (len(found) // 2)
        assert [w.proxies for w in found[::2]] == [w.proxies for w in found[1::2]]
        return [w.proxies for w in found[::2]]

    mlps = [m for site in model.sites if site.kind == "mlp" for m in model.matrices(site)]
    one = sum(matrix.bytes for matrix in mlps)
    assert one == 4 * SIZES["layers"] * 2 * SIZES["width"] * SIZES["mlp"]
    alone = [(name,) for name in dense]
    assert groups(3 * one, 8) == [svd, (*dense,), ("model(a)",)]
    assert groups(3 * one - 1, 8) == [svd, (*dense[:2],), (dense[2],), ("model(a)",)]
    assert groups(3 * one, 2) == [svd, (*dense[:2],), (dense[2],), ("model(a)",)]
    assert groups(1, 8) == [svd, *alone, ("model(a)",)]

    monkeypatch.setattr(works, "WEIGHTS", 3 * one)
    tables = []
    for bound in (1, 8):
        monkeypatch.setattr(works, "CHANGED", bound)
        tables.append(am.audit(model, task, specs[1], sequences=20, fit_sequences=20).results)
    assert_frame_equal(tables[0], tables[1], check_exact=True)


@pytest.mark.parametrize(
    "spec",
    [
        "quantize(bits=3,group=8,calibrated=true)@*.{attention,mlp}",
        "prune(density=0.5)@0.mlp",
        "low_rank(rank=2,whitened=true)@1.1.pattern",
        "prune(density=0.5,by=wanda)@*.attention",
    ],
)
def test_fits_come_back_from_their_file(task: Task, spec: str, tmp_path: Path) -> None:
    model, proxy = decoder(task), simplified(spec)
    fitted = fit_on_task(model, [proxy], task, 30)
    fitted.save(tmp_path / "fits.safetensors")
    loaded = FittedProxies.load(tmp_path / "fits.safetensors")
    found = []
    for fits in (fitted, loaded):
        with torch.inference_mode(), in_place(model, fits[proxy]) as edits:
            found.append(model.run(batch(), edits).state.residual)
    assert torch.equal(*found)


def test_a_fit_depends_on_its_split_alone(task: Task) -> None:
    """Not on how its sequences are batched."""
    model, spec = decoder(task), "quantize(bits=3,group=8,calibrated=true)@*.mlp"
    proxy, train = simplified(spec), batch((9, 6, 9, 4))
    cuts = [[0, 4], [0, 1, 3, 4]]
    learnt = []
    for cut in cuts:
        parts = [Batch(train.tokens[a:b], train.mask[a:b]) for a, b in pairwise(cut)]
        by_site = fit(model, [proxy], {"train": parts})[proxy].by_site
        learnt.append({site: s.state_dict() for site, s in by_site.items()})
    for site in learnt[0]:
        for name, value in learnt[0][site].items():
            torch.testing.assert_close(value, learnt[1][site][name])


def refused(model: Model, spec: str, match: str) -> None:
    with pytest.raises(AnamorphError, match=match):
        am.simplifications.check_proxies(model, [simplified(spec)], {"train": [batch()]})


def test_what_cannot_be_is_refused(task: Task) -> None:
    model = decoder(task)
    refused(model, "prune(density=0.5)@0.mlp;svd(rank=2)@1.*.key", "does one of the two")
    refused(model, "prune(density=0.5,joint=true)@0.mlp", "leave out joint=true")
    refused(model, "prune(density=0.5)@0.residual", "kinds attention, mlp")
    refused(model, "prune(density=0.5)@0.0.pattern", "kinds attention, mlp")
    rotary = decoder(task, positions="rotary")
    refused(
        rotary,
        "low_rank(rank=2)@1.0.pattern",
        "behind 1.0.pattern can be changed: rotary positions turn",
    )
    both = "prune(density=0.5)@1.attention;low_rank(rank=2)@1.0.pattern"
    refused(model, both, "in layer 1, attention and a pattern change the same weights")


@pytest.mark.parametrize(
    ("name", "spec", "match"),
    [
        ("llama", "low_rank(rank=2)@1.0.pattern", "rotary positions turn"),
        ("gemma3", "low_rank(rank=2)@1.0.pattern", "norms, or something else, stand between"),
        (
            "gpt_oss",
            "prune(density=0.5)@1.mlp",
            "not all matrices there are of linear modules, as with experts",
        ),
        ("gpt_neo", "prune(density=0.5)@1.attention", "attention is not known"),
    ],
)
def test_models_that_do_not_offer_them(name: str, spec: str, match: str) -> None:
    refused(HuggingFace(make(name)), spec, match)


def test_a_hooked_model_says_what_it_does_not_know(task: Task) -> None:
    module = decoder(task)
    model = am.HookedModel(module, {"*.mlp": Hook("blocks.*.norm_mlp", side="input")})
    refused(model, "prune(density=0.5)@0.mlp", "which is the input of 'blocks.0.norm_mlp'")
    model = am.HookedModel(module, {"*.mlp": "blocks.*.norm_mlp"})
    refused(model, "prune(density=0.5)@0.mlp", "no linear module within 'blocks.0.norm_mlp'")


def test_a_nan_names_the_matrix_and_the_sequence(task: Task) -> None:
    model = decoder(task)
    with torch.no_grad():
        model.embedding.weight[2] = torch.nan
    data = batch()
    data.tokens[1, 2] = 2
    proxy = simplified("prune(density=0.5,by=wanda)@1.mlp")
    with pytest.raises(AnamorphError, match=r"blocks\.1\.up: sequence 1 of the data gives it"):
        fit(model, [proxy], {"train": [data]})
    assert not any(part._forward_pre_hooks for part in model.modules())


def test_a_matrix_that_is_not_used_is_told(task: Task) -> None:
    class Skips(am.Decoder):
        """Uses the weights of its last MLP without calling the module."""

        def layer(self, index: int, *given: Any, **named: Any) -> Any:
            down = self.blocks[index].down
            del self.blocks[index]._modules["down"]
            self.blocks[index].down = lambda x: nn.functional.linear(x, down.weight, down.bias)  # type: ignore[assignment]
            try:
                return super().layer(index, *given, **named)
            finally:
                del self.blocks[index].down
                self.blocks[index].down = down

    model = small_model(task, Skips)
    with pytest.raises(AnamorphError, match=r"blocks\.0\.down was used 0 times in one run"):
        logits_with(model, "prune(density=0.5)@0.mlp")


def test_what_is_rounded_without_data_has_no_split(task: Task) -> None:
    data = {"train": [batch()], "far": [batch()]}
    with pytest.raises(AnamorphError, match=r"it is not fitted, so on=far says nothing"):
        fit(decoder(task), [simplified("quantize(bits=4, on=far)@1.mlp")], data)
