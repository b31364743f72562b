"""Views from disk in a model, against loops of plain hooks that know nothing of them."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import anamorph as am
from anamorph.auditing.audit import fit_on_task, with_identity
from anamorph.auditing.engine import Settings, audit_split
from anamorph.auditing.proxies import SimplifiedProxy
from anamorph.auditing.stacks import stacked_edits
from anamorph.machine.threads import torch_threads
from anamorph.models.base import Batch
from anamorph.models.huggingface.model import HuggingFace
from anamorph.models.sites import Site
from anamorph.simplifications import FittedProxies, FittedProxy, Simplified, expand, fit
from anamorph.tasks import Task
from coders import cross_layer, sae, settings, transcoder, transcoder_set
from huggingface_models import VOCABULARY, make, uneven
from plain import forward, small_model

LAYERS, WIDTH = 3, 32  # of the Hugging Face models
TOKENS = torch.randint(3, VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(1))
WORD = torch.tensor([[0, 2, 3, 5, 6, 4, 7, 1]])  # of the decoder
FROZEN = ";frozen@*.*.pattern"
HELD = ("", FROZEN, f"{FROZEN};frozen@*.norm")


def fitted(model: Any, spec: str) -> FittedProxy:
    (proxy,) = fit(model, expand(spec), {"train": [Batch.whole(TOKENS)]}).values()
    return proxy


def logits(model: Any, batch: Batch, proxy: FittedProxy, at: Tensor | None = None) -> Tensor:
    """[batch, position or query, token] of a proxy."""
    led = any(s.beside_model for s in proxy.by_site.values())
    edits = stacked_edits([proxy], led)
    with torch.inference_mode():
        return model.logits(model.run(batch, edits, at=at).state)[-1]  # type: ignore[no-any-return]


# --- by hand ------------------------------------------------------------------------------------

MLPS: dict[str, Callable[[nn.Module, int], tuple[nn.Module, nn.Module]]] = {
    "gpt2": lambda m, i: (m.transformer.h[i].mlp,) * 2,
    "llama": lambda m, i: (m.model.layers[i].mlp,) * 2,
    "gemma3": lambda m, i: (m.model.layers[i].mlp, m.model.layers[i].post_feedforward_layernorm),
}
"""The module whose input a transcoder reads, and the one whose output it writes."""


def attention_by_hand(module: nn.Module, name: str, layer: int, pattern: Tensor) -> list[Any]:
    """Hooks that make what attention adds of its own values and a pattern [batch, head, q, k]."""
    kept: list[Tensor] = []
    if name == "gpt2":
        attention = module.transformer.h[layer].attn
        values, project = attention.c_attn, attention.c_proj
    else:
        attention = module.model.layers[layer].self_attn
        values, project = attention.v_proj, attention.o_proj

    def keep(_: Any, __: Any, out: Tensor) -> None:
        kept[:] = [out.chunk(3, dim=-1)[2] if name == "gpt2" else out]

    def write(_: Any, __: Any, out: tuple[Any, ...]) -> tuple[Any, ...]:
        heads = kept[0].unflatten(-1, (-1, 8)).transpose(1, 2)  # [batch, key head, position, 8]
        heads = heads.repeat_interleave(pattern.shape[1] // heads.shape[1], dim=1)
        return (project((pattern @ heads).transpose(1, 2).flatten(2)), *out[1:])

    return [values.register_forward_hook(keep), attention.register_forward_hook(write)]


def norms_by_hand(module: nn.Module, name: str) -> list[Any]:
    """Hooks that make all norms linear, with the scale of what they take of `TOKENS`."""
    if name == "gpt2":
        norms = [x for x in module.modules() if isinstance(x, nn.LayerNorm)]
    else:
        of_heads = ("q_norm", "k_norm")
        named = [x for x in module.named_modules() if x[0].endswith("norm")]
        norms = [norm for path, norm in named if not path.endswith(of_heads)]
    assert len(norms) == LAYERS * (4 if name == "gemma3" else 2) + 1
    taken: dict[nn.Module, Tensor] = {}

    def keep(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        taken[norm] = inputs[0]

    hooks = [norm.register_forward_pre_hook(keep) for norm in norms]
    module(TOKENS)
    for hook in hooks:
        hook.remove()

    def linear(norm: Any, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        clean, (x,) = taken[norm], inputs
        if name == "gpt2":
            variance = clean.var(-1, correction=0, keepdim=True)
            centred = x - x.mean(-1, keepdim=True)
            return centred / (variance + 1e-5).sqrt() * norm.weight + norm.bias
        gain = norm.weight + 1 if name == "gemma3" else norm.weight
        return x / (clean.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * gain

    return [norm.register_forward_hook(linear) for norm in norms]


def replaced_by_hand(
    module: nn.Module,
    name: str,
    write: Callable[[int, list[Tensor]], Tensor],
    layers: Sequence[int],
    frozen: str,
) -> Tensor:
    """Logits where MLPs of some layers are what `write` makes of what all MLPs were given."""
    with torch.no_grad(), ExitStack() as stack:
        module.set_attn_implementation("eager")
        patterns = module(TOKENS, output_attentions=True).attentions
        hooks, read = norms_by_hand(module, name) if "norm" in frozen else [], []

        def keep(_: Any, inputs: tuple[Tensor, ...]) -> None:
            read.append(inputs[0])

        for layer in range(LAYERS):
            reads, writes = MLPS[name](module, layer)
            hooks.append(reads.register_forward_pre_hook(keep))
            if layer in layers:
                hook = lambda *_, layer=layer: write(layer, read)  # noqa: E731
                hooks.append(writes.register_forward_hook(hook))
            if "pattern" in frozen:
                hooks += attention_by_hand(module, name, layer, patterns[layer])
        for hook in hooks:
            stack.callback(hook.remove)
        return module(TOKENS).logits  # type: ignore[no-any-return]


def written_by_hand(numbers: list[dict[str, Tensor]], layer: int, read: Sequence[Tensor]) -> Tensor:
    """What a cross-layer transcoder writes, by circuit-tracer's formula."""
    written = numbers[layer]["b_dec"]
    for source in range(layer + 1):
        w = numbers[source]
        before = read[source] @ w["W_enc"].T + w["b_enc"]
        features = torch.where(before > w["threshold"], before, 0.0)
        written = written + features @ w["W_dec"][:, layer - source]
    return written


@pytest.mark.parametrize("frozen", HELD)
@pytest.mark.parametrize("layers", [(0, 1, 2), (1,)])
@pytest.mark.parametrize("name", MLPS)
def test_a_cross_layer_transcoder_is_a_loop_of_hooks(
    tmp_path: Path, name: str, layers: tuple[int, ...], frozen: str
) -> None:
    numbers = cross_layer(tmp_path, LAYERS, WIDTH)
    module = uneven(make(name))
    where = "*" if len(layers) == LAYERS else layers[0]
    proxy = fitted(HuggingFace(module), f"clt({tmp_path})@{where}.mlp{frozen}")
    found = logits(HuggingFace(module), Batch.whole(TOKENS), proxy)
    write = lambda layer, read: written_by_hand(numbers, layer, read)  # noqa: E731
    expected = replaced_by_hand(module, name, write, layers, frozen)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    for held in set(HELD) - {frozen}:
        other = replaced_by_hand(module, name, write, layers, held)
        assert (found - other).abs().max() > 0.05


@pytest.mark.parametrize("name", MLPS)
def test_transcoders_with_a_file_a_layer_are_a_loop_of_hooks(tmp_path: Path, name: str) -> None:
    numbers = transcoder_set(tmp_path, LAYERS, WIDTH)

    def write(layer: int, read: list[Tensor]) -> Tensor:
        w = numbers[layer]
        return (read[layer] @ w["W_enc"].T + w["b_enc"]).relu() @ w["W_dec"] + w["b_dec"]

    module = make(name)
    proxy = fitted(HuggingFace(module), f"transcoder({tmp_path})@*.mlp")
    found = logits(HuggingFace(module), Batch.whole(TOKENS), proxy)
    expected = replaced_by_hand(module, name, write, range(LAYERS), frozen="")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# --- our decoder --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(task: Task) -> am.Decoder:
    return uneven(small_model(task, layers=3))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Coders for the decoder, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("coders")
    cross_layer(folder / "clt", 3, 8)
    return {
        "sae": sae(folder / "sae", 1, 8),
        "transcoder": transcoder(folder / "transcoder", 1, 8),
        "clt": str(folder / "clt"),
        "all held": str(folder / "clt"),
        "held behind": sae(folder / "held", 1, 8),
    }


def decoder_by_hand(
    model: am.Decoder, tokens: Any, numbers: list[dict[str, Tensor]], frozen: str
) -> np.ndarray:
    """Logits of the decoder in NumPy, its MLPs replaced by a cross-layer transcoder."""
    clean = forward(model, tokens, {})
    read: list[Tensor] = []
    edits: dict[Site, Any] = {}
    for layer in range(3):
        edits[Site(layer, None, "mlp_input")] = lambda x: (read.append(torch.tensor(x)), x)[1]
        edits[Site(layer, None, "mlp")] = lambda x, layer=layer: written_by_hand(
            numbers, layer, read
        ).numpy()
    for site in model.sites:
        if site.kind.startswith(("norm", "pattern")) and site.kind.split("_")[0] in frozen:
            edits[site] = lambda x, site=site: clean[site]
    return forward(model, tokens, edits)["logits"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("frozen", HELD)
def test_in_our_decoder_it_is_the_loop_in_numpy(
    model: am.Decoder, task: Task, tmp_path: Path, frozen: str
) -> None:
    numbers = [
        {name: value.double() for name, value in layer.items()}
        for layer in cross_layer(tmp_path, 3, 8)
    ]
    (proxy,) = fit_on_task(model, expand(f"clt({tmp_path})@*.mlp{frozen}"), task, 5).values()
    rows = [np.asarray(tokens) for tokens in list(task.splits["unseen_depth"])[:4]]
    length = max(map(len, rows))
    mask = torch.tensor([[i < len(row) for i in range(length)] for row in rows])
    tokens = torch.from_numpy(np.stack([np.resize(row, length) for row in rows])).long()
    at = torch.tensor([[2, 5]] * len(rows))
    found = logits(model, Batch(tokens, mask), proxy)
    scored = logits(model, Batch(tokens, mask), proxy, at)  # the last layer at these alone
    for number, row in enumerate(rows):
        made = decoder_by_hand(model, row, numbers, frozen)
        expected = torch.from_numpy(made).float()
        torch.testing.assert_close(found[number, : len(row)], expected, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(scored[number], expected[at[number]], atol=1e-3, rtol=1e-3)
        clean = forward(model, row, {})["logits"]
        others = [decoder_by_hand(model, row, numbers, held) for held in set(HELD) - {frozen}]
        assert min(np.abs(made - other).max() for other in (clean, *others)) > 0.05


SPECS = {
    "sae": "sae({}{})@1.residual",
    "transcoder": "transcoder({}{})@1.mlp",
    "clt": "clt({}{})@*.mlp",
    "all held": f"clt({{}}{{}})@*.mlp{HELD[2]}",
    "held behind": "sae({}{})@1.residual;frozen@2.norm_final",
}


@pytest.mark.parametrize("kind", SPECS)
def test_with_the_error_it_is_the_model(
    model: am.Decoder, task: Task, paths: dict[str, str], kind: str
) -> None:
    split = task.splits["unseen_depth"].take(np.arange(8))
    specs = [SPECS[kind].format(paths[kind], more) for more in ("", ", error=true")]
    proxies = fit_on_task(model, expand(specs), task, 5)
    sums = [sums for sums in audit_split_of(model, split, task, proxies).values()]
    kl = [float(cell.sums[cell.metrics.index("output_kl")].sum()) for cell in sums]
    assert kl[0] > 0.1 and abs(kl[1]) < 1e-4
    batch = Batch.whole(torch.from_numpy(np.asarray(next(iter(split))))[None].long())
    nothing = FittedProxy(Simplified(()), {}, 0)
    with_error = logits(model, batch, list(proxies.values())[1])
    torch.testing.assert_close(with_error, logits(model, batch, nothing), atol=1e-4, rtol=1e-4)


LEAVING = SPECS | {
    "affine": "svd(rank=1{1})@0.*.{{query,value}};svd(rank=2{1})@1.mlp",
    "pattern": "topk_attention(k=1{1})@0.*.pattern",
    "output": "resample(seed=0{1})@1.*.output",
    "chain": "pca(rank=2)+svd(rank=1{1})@1.mlp",
}


@pytest.mark.parametrize("kind", LEAVING)
@pytest.mark.parametrize("at", [None, torch.tensor([[1, 6, 2]])])
def test_first_positions_are_left_as_they_are(
    model: am.Decoder, task: Task, paths: dict[str, str], kind: str, at: Tensor | None
) -> None:
    specs = [LEAVING[kind].format(paths.get(kind), more) for more in ("", ", keep=2")]
    plain, keeping = fit_on_task(model, expand(specs), task, 5).values()
    batch = Batch.whole(WORD)
    nothing, one, other = (
        logits(model, batch, proxy, at)[0]
        for proxy in (FittedProxy(Simplified(()), {}, 0), plain, keeping)
    )
    first = torch.arange(WORD.shape[1]) < 2 if at is None else at[0] < 2
    torch.testing.assert_close(other[first], nothing[first])
    assert not torch.isclose(other[~first], nothing[~first], atol=1e-3).all(-1).any()
    assert not torch.allclose(one[first], nothing[first], atol=1e-3)


def affine_mlps(model: am.Decoder) -> list[tuple[Tensor, Tensor]]:
    """Make every MLP affine: its activations lie where GELU is the identity."""
    maps = []
    with torch.no_grad():
        for block in model.blocks:
            block.up.bias.fill_(60.0)
            weight = block.down.weight @ block.up.weight  # [width, width]
            maps.append((weight.T, block.down.weight @ block.up.bias + block.down.bias))
    return maps


@pytest.mark.parametrize("form", ["skip", "pairs", "across"])
def test_one_that_is_the_mlp_itself_gives_the_model(task: Task, tmp_path: Path, form: str) -> None:
    model = small_model(task, layers=2)
    maps = affine_mlps(model)
    kind = "cross_layer_transcoder" if form == "across" else "transcoder_set"
    settings(tmp_path, kind)
    for layer, (weight, bias) in enumerate(maps):
        eye, none = torch.eye(8), torch.zeros(16)
        wide = {"W_enc": torch.cat([eye, -eye]), "b_enc": none, "b_dec": bias}  # x and -x
        if form == "across":
            decoder = torch.zeros(16, 2 - layer, 8)
            decoder[:, 0] = torch.cat([weight, -weight])
            save_file({f"W_dec_{layer}": decoder}, tmp_path / f"W_dec_{layer}.safetensors")
            named = {f"{name}_{layer}": value for name, value in wide.items()}
            save_file(named, tmp_path / f"W_enc_{layer}.safetensors")
            continue
        wide["W_dec"] = torch.cat([weight, -weight])
        if form == "skip":
            wide |= {"W_dec": torch.zeros(16, 8), "W_skip": weight.T.contiguous()}
        save_file(wide, tmp_path / f"layer_{layer}.safetensors")
    name = "clt" if form == "across" else "transcoder"
    (proxy,) = fit_on_task(model, expand(f"{name}({tmp_path})@*.mlp"), task, 5).values()
    batch = Batch.whole(WORD)
    nothing = FittedProxy(Simplified(()), {}, 0)
    expected = logits(model, batch, nothing)
    torch.testing.assert_close(logits(model, batch, proxy), expected, atol=1e-2, rtol=1e-3)


# --- stacks, threads, a run's file ---------------------------------------------------------------


def audit_split_of(
    model: Any, split: Any, task: Task, proxies: FittedProxies, **options: Any
) -> dict[Any, Any]:
    made = [SimplifiedProxy(proxy, model) for proxy in proxies.values()]
    return dict(audit_split(model, split, task.candidates, made, Settings(**options)))


@pytest.fixture(scope="module")
def many(model: am.Decoder, task: Task, paths: dict[str, str]) -> FittedProxies:
    specs = [
        f"clt({paths['clt']})@*.mlp{FROZEN}",
        f"clt({paths['clt']})@*.mlp{HELD[2]}",
        f"clt({paths['clt']}, keep=2)@*.mlp",
        f"transcoder({paths['transcoder']})@1.mlp",
        f"transcoder({paths['transcoder']}, keep=1)@1.mlp;frozen@2.*.{{query,key}}",
        f"sae({paths['sae']}, keep=3)@1.residual;frozen@2.0.pattern;svd(rank=2)@0.0.value",
        f"sae({paths['sae']})@1.residual;frozen@2.norm_final",
        f"sae({paths['sae']})+svd(rank=3)@1.residual",
        "svd(rank=2, keep=2)@0.*.value;onehot(keep=4)@1.*.pattern",
        "svd(rank=2)@0.*.value",
        "svd(rank=2)@0.*.value;frozen@*.*.pattern",
    ]
    return fit_on_task(model, with_identity(specs), task, 20)


def test_in_one_stack_each_gives_what_it_gives_alone(
    model: am.Decoder, task: Task, many: FittedProxies
) -> None:
    split = task.splits["unseen_depth"].take(np.arange(8))
    together = audit_split_of(model, split, task, many)
    for proxy, one in many.items():
        alone = audit_split_of(model, split, task, FittedProxies({proxy: one.by_site}, 3))[proxy]
        torch.testing.assert_close(together[proxy].sums, alone.sums, atol=1e-4, rtol=1e-4)
    sums = [cell.sums[cell.metrics.index("output_kl")].sum() for cell in together.values()]
    assert len({f"{float(value):.3f}" for value in sums}) == len(sums)  # no two are the same


def test_threads_give_the_same_bytes(model: am.Decoder, task: Task, many: FittedProxies) -> None:
    split = task.splits["unseen_depth"].take(np.arange(24))
    found = []
    for threads in (1, 2):
        with torch_threads(threads):
            found.append(audit_split_of(model, split, task, many, batch_tokens=100))
    for proxy, sums in found[0].items():
        assert torch.equal(sums.sums, found[1][proxy].sums), proxy


def test_a_run_keeps_nothing_of_it_and_reads_it_again(
    model: am.Decoder, task: Task, many: FittedProxies, tmp_path: Path
) -> None:
    many.save(tmp_path / "fits.safetensors")
    again = FittedProxies.load(tmp_path / "fits.safetensors")
    batch = Batch.whole(WORD)
    for proxy, one in many.items():
        kept = [s for s in one.by_site.values() if not s.kept]
        assert all(not s.state_dict() for s in kept)
        assert again[proxy].first_layer == one.first_layer
        assert torch.equal(logits(model, batch, again[proxy]), logits(model, batch, one)), proxy


def test_all_layers_share_what_one_file_holds(many: FittedProxies) -> None:
    by_site = next(f.by_site for p, f in many.items() if "keep=2" in str(p))
    assert len(by_site) == 3 and len({id(fit) for fit in by_site.values()}) == 1
