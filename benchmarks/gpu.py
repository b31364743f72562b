"""On a machine with a GPU: equality first, then how fast, in under five minutes.

    python benchmarks/gpu.py [--parts equality race profile llama dyck] [--device cuda] [--small]

`equality`: the metrics on the device against those on the CPU; then the audit of a Dyck run's model
and of a model folder, on the device and on the CPU: every number of the results, ties named.

`race`: GPT-2's shape (12 layers, 12 heads, width 768, vocabulary 50,257, random weights), 64
sequences of 128 tokens, 144 cells of rank 16, against plain hooks from a prefix, in float32
(products `highest`, then `high`) and bfloat16. Hooks take three metrics, anamorph all of its own;
model, tokens, projectors and sums are on the device for both. Medians of three rounds.

`profile`: where the device's time goes in the engine's sweep: the share of matrix products, and how
many kernels are launched.

`llama`: a model of a billion parameters in bfloat16, every query head at three ranks, and hooks
from a prefix on a tenth of the cells (they project before rotary positions turn what they project,
so only their time is comparable).

`dyck`: the preset `demo`, trained for some steps and in whole, and its audit; on the device against
two threads of the CPU.

`--small` is a toy of everything, to see that it runs, on a CPU too.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "peers"), str(HERE.parent / "tests" / "helpers")]

import anamorph_  # noqa: E402
import hooks  # noqa: E402
from transformers import (  # noqa: E402
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from work import Shape, Usual, fit_projectors, random_model, save_model  # noqa: E402

import anamorph as am  # noqa: E402
from anamorph.auditing.audit import fit_on_task, proxies_of  # noqa: E402
from anamorph.auditing.engine import Settings, audit_split  # noqa: E402
from anamorph.auditing.proxies import SimplifiedProxy  # noqa: E402
from anamorph.auditing.sizes import usual_batch_tokens, usual_batches, usual_memory  # noqa: E402
from anamorph.faithfulness.comparison import model_output, position_metrics  # noqa: E402
from anamorph.faithfulness.divergences import Candidates  # noqa: E402
from anamorph.faithfulness.metrics import metric_names  # noqa: E402
from anamorph.machine.devices import (  # noqa: E402
    accelerator,
    find_device,
    matmul_precision,
)
from anamorph.models.base import Model  # noqa: E402
from anamorph.models.huggingface.model import HuggingFace  # noqa: E402
from anamorph.runs.folder import Run  # noqa: E402
from anamorph.studies.sources import GivenStudy  # noqa: E402
from anamorph.studies.specification import GivenSpec  # noqa: E402
from anamorph.studies.study import audit_study, carry_out, run_study  # noqa: E402
from anamorph.tasks import Split, Task  # noqa: E402
from anamorph.training.train import default_model  # noqa: E402
from tiny_tokenizers import SENTENCES, byte_level  # noqa: E402

ROUNDS = 3
PEAK = 989e12  # operations a second in bfloat16 of an H100 SXM, as its data sheet has it
NUMBERS = (("float32", "highest"), ("float32", "high"), ("bfloat16", "highest"))
PRODUCTS = ("gemm", "cutlass", "xmma", "nvjet", "sgemm", "cublas")  # in names of kernels


@dataclass(frozen=True)
class Work:
    """How large everything is."""

    shape: Shape
    sequences: int
    llama: LlamaConfig
    llama_tokens: tuple[int, int]  # sequences, their length
    preset: str
    steps: int  # of training, that are compared


def llama_of(vocabulary: int, width: int, inner: int, layers: int, heads: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
        tie_word_embeddings=True,
    )


WHOLE = Work(
    shape=Shape(layers=12, heads=12, width=768, vocabulary=50_257, length=128),
    sequences=64,
    llama=llama_of(32_000, 2_048, 8_192, 16, 32),
    llama_tokens=(64, 256),
    preset="demo",
    steps=300,
)
TOY = Work(
    shape=Shape(layers=3, heads=4, width=128, vocabulary=501, length=16),
    sequences=8,
    llama=llama_of(500, 64, 128, 3, 4),
    llama_tokens=(4, 16),
    preset="smoke",
    steps=20,
)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--small", action="store_true")
    options = arguments.parse_args()
    device, work = find_device(options.device), TOY if options.small else WHOLE
    print(f"torch {torch.__version__} on {accelerator(device) or 'the CPU'}")
    failed = False
    for name in options.parts:
        begun = time.perf_counter()
        print(f"\n{name}", flush=True)
        try:
            with tempfile.TemporaryDirectory() as folder:
                PARTS[name](device, work, Path(folder))
        except Exception as error:  # so that the other parts are not lost
            print(f"  FAILED: {type(error).__name__}: {error}")
            failed = True
        print(f"  ({time.perf_counter() - begun:.0f} s in all)", flush=True)
    sys.exit(failed)


def timed(device: torch.device, call: Callable[[], Any]) -> float:
    """The seconds that a call takes, until the device has done its part."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    begun = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - begun


# Equality


def equality(device: torch.device, work: Work, folder: Path) -> None:
    metrics_agree(device, work)
    spec = am.load_preset("dyck", "smoke", ['device="cpu"'])
    run = run_study(spec, folder / "run")
    away = audit_study(run.path, spec.simplify, folder / "away", device=str(device))
    compare("audit of a Dyck run", run, away)
    tokenizer = byte_level()
    small = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 32}
    small |= {"bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), initializer_range=0.2, **small)
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    texts = {"train": SENTENCES, "iid": [text[3:] for text in SENTENCES]}
    texts["ood:back"] = [text[::-1] for text in SENTENCES]
    data = []
    for role, some in texts.items():
        path = folder / f"{role.replace(':', '-')}.jsonl"
        path.write_text("\n".join(json.dumps({"text": text}) for text in some))
        data.append(f"{role}={path}")
    runs = []
    for place in ("cpu", str(device)):
        given = GivenSpec(
            model=str(folder / "model"),
            data=data,
            simplify=("svd(rank=[1,2])@*.*.{query,key}", "pca(rank=2)@1.*.value"),
            length=16,
            device=place,
        )
        out = folder / f"given-{len(runs)}"
        runs.append(carry_out(GivenStudy.load(given), out))
    compare("audit of a model folder", *runs)


def metrics_agree(device: torch.device, work: Work) -> None:
    """All output metrics of two copies, by what the device uses, against those of the CPU."""
    generator = torch.Generator().manual_seed(0)
    rows, vocabulary = 64, work.shape.vocabulary
    ours = torch.randn(rows, vocabulary, generator=generator) * 3
    theirs = ours + torch.randn(2, rows, vocabulary, generator=generator) * 0.3
    theirs[0, :8] = ours[:8]  # the identity
    targets = torch.randint(vocabulary, (rows,), generator=generator)

    def found(place: torch.device) -> Tensor:
        every = Candidates.of(np.arange(vocabulary), vocabulary, place)
        output = model_output(ours.to(place), targets.to(place), every)
        return position_metrics(output, theirs.to(place)).cpu().double()

    usual, away = found(torch.device("cpu")), found(device)
    worst = (usual - away).abs().amax((0, 2)).tolist()
    names = metric_names(attention=False)
    said = ", ".join(f"{name} {value:.0e}" for name, value in zip(names, worst, strict=True))
    print(f"  metrics at {rows} positions differ by at most: {said}")


def compare(name: str, usual: Run, away: Run) -> None:
    """The largest difference between the numbers of two runs, and the predictions that tie."""
    keys = ["seed", "simplification", "split", "facet", "level", "metric"]
    both = usual.results.join(away.results, on=keys, nulls_equal=True, suffix="_away")
    both = both.with_columns(apart=(pl.col("value") - pl.col("value_away")).abs())
    beyond = both.filter(pl.col("apart") > 1e-5)
    print(
        f"  {name}: {len(both)} numbers of {len(usual.results)}, the largest difference "
        f"{both['apart'].max():.1e}; {len(beyond)} differ by more than 1e-5"
    )
    for row in beyond.head(6).iter_rows(named=True):
        print(f"    {[row[key] for key in keys]}: {row['value']:.7f}, {row['value_away']:.7f}")
    rounding = usual.checks["rounding"]
    print(f"    ties in the model itself: {rounding['ties']} of {rounding['positions']} positions")


# The race


@dataclass
class Race:
    """The work of the race in one number format: calls that do a sweep each."""

    hooks: Callable[[], Tensor]
    engine: Callable[[], Tensor]
    cells: int


def race_of(device: torch.device, work: Work, folder: Path, dtype: torch.dtype) -> Race:
    torch.manual_seed(0)
    weights, shape = folder / "weights.safetensors", work.shape
    tokens = torch.randint(shape.vocabulary, (1, work.sequences, shape.length + 1))
    with torch.inference_mode():
        model = random_model(shape, 0)
        every = fit_projectors(model, tokens[0, :8, :-1])
    save_model(model, shape, weights)
    given = weights, tokens.to(device), every[:, :, 2:].to(device, dtype)  # of rank 16
    sweep = hooks.Prefix(*given)
    model, split, proxies = anamorph_.setting(*given)
    candidates, settings = np.arange(model.vocabulary), settings_of(model)

    @torch.inference_mode()
    def engine() -> Tensor:
        cells = audit_split(model, split, candidates, proxies, settings)
        return means(cells, proxies, int(split.scored.sum()))

    return Race(torch.inference_mode()(sweep), engine, len(proxies))


def settings_of(model: Model) -> Settings:
    return Settings(usual_batch_tokens(model), usual_memory(model), usual_batches(model))


def means(cells: Any, proxies: Sequence[SimplifiedProxy], positions: int) -> Tensor:
    """[cell, metric] JSD, agreement and more cross entropy, as hooks have them."""
    names = metric_names()
    jsd, same, theirs, ours = (
        torch.stack([cells[p.spec].sums[names.index(name)].sum() for p in proxies]) / positions
        for name in ("output_jsd", "same_prediction", "proxy_cross_entropy", "model_cross_entropy")
    )
    return torch.stack([jsd, same, theirs - ours], dim=1).float()


def race(device: torch.device, work: Work, folder: Path) -> None:
    print("  numbers              hooks      anamorph   ratio   largest difference (bits, share)")
    for dtype, products in NUMBERS:
        with matmul_precision(products):
            both = race_of(device, work, folder, getattr(torch, dtype))
            theirs, ours = both.hooks().cpu().float(), both.engine()
            apart = (theirs - ours).abs().amax(0)
            rounds = [[timed(device, call) for call in vars(both).values() if callable(call)]
                      for _ in range(ROUNDS)]  # fmt: skip
        a, b = (statistics.median(x) for x in zip(*rounds, strict=True))
        ratio = statistics.median(x / y for x, y in rounds)
        print(
            f"  {dtype:9s} {products:8s} {a:8.2f} s {b:10.2f} s {ratio:7.2f}"
            f"   JSD {apart[0]:.0e}, agreement {apart[1]:.0e}, cross entropy {apart[2]:.0e}",
            flush=True,
        )


def profile(device: torch.device, work: Work, folder: Path) -> None:
    for dtype, products in NUMBERS:
        with matmul_precision(products):
            both = race_of(device, work, folder, getattr(torch, dtype))
            both.engine()
            with torch.profiler.profile() as seen:
                timed(device, both.engine)
        kernels = [e for e in seen.key_averages() if e.self_device_time_total]
        total = sum(e.self_device_time_total for e in kernels) or 1
        products_ = sum(
            e.self_device_time_total for e in kernels if any(p in e.key.lower() for p in PRODUCTS)
        )
        launches = sum(e.count for e in seen.key_averages() if "LaunchKernel" in e.key)
        print(
            f"  {dtype:9s} {products:8s} {total / 1e6:.2f} s on the device, matrix products "
            f"{products_ / total:.0%}, {launches:,} launches for {both.cells} cells"
        )
        for e in sorted(kernels, key=lambda e: -e.self_device_time_total)[:8]:
            print(f"    {e.self_device_time_total / total:6.1%} {e.count:7,d}  {e.key[:80]}")


# A billion parameters


def llama(device: torch.device, work: Work, folder: Path) -> None:
    config, (sequences, length) = work.llama, work.llama_tokens
    torch.manual_seed(0)
    with torch.device(device):
        module = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    model, task = HuggingFace(module), random_task(config.vocab_size, sequences, length)
    sweep = ["svd(rank=[1,4,16])@*.*.query"]
    proxies = proxies_of(model, sweep, "head")[1:]
    fitted = fit_on_task(model, proxies, task, 8)
    ready = [SimplifiedProxy(fitted[p], model) for p in proxies]
    split, settings = task.splits["iid"], settings_of(model)
    tenth = ready[::10]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    audit_split(model, split, task.candidates, tenth[:4], settings)  # kernels are compiled
    taken = timed(device, lambda: audit_split(model, split, task.candidates, ready, settings))
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0
    done = sum(operations(config, p.first_layer, sequences * length) for p in ready)
    print(
        f"  {sum(p.numel() for p in module.parameters()) / 1e9:.2f}e9 parameters, {len(ready)} "
        f"cells: {taken:.1f} s, {1000 * taken / len(ready):.1f} ms a cell, "
        f"{done / taken / PEAK:.0%} of the bf16 peak, {peak:.1f} GiB at most"
    )
    tokens = torch.from_numpy(split.tokens.astype(np.int64)).view(sequences, length + 1).to(device)
    theirs = timed(device, lambda: llama_hooks(module, tokens, [p.first_layer for p in tenth]))
    ours = timed(device, lambda: audit_split(model, split, task.candidates, tenth, settings))
    print(
        f"  a tenth of the cells: hooks from a prefix {theirs:.1f} s, anamorph {ours:.1f} s, "
        f"ratio {theirs / ours:.2f}"
    )


def random_task(vocabulary: int, sequences: int, length: int) -> Task:
    rng = np.random.default_rng(0)

    def split(name: str, role: Any) -> Split:
        tokens = rng.integers(0, vocabulary, (sequences, length + 1)).astype(np.int32)
        scored = np.ones(tokens.shape, bool)
        scored[:, 0] = False
        offsets = np.arange(sequences + 1) * (length + 1)
        return Split(name, role, tokens.ravel(), offsets, scored.ravel())

    splits = {"train": split("train", "train"), "iid": split("iid", "iid")}
    names = tuple(map(str, range(vocabulary)))
    return Task("random", {"name": "random"}, names, np.arange(vocabulary), splits)


def operations(config: LlamaConfig, first: int, tokens: int) -> float:
    """Of matrix products in the layers from the first on, and of the unembedding."""
    width, inner = config.hidden_size, config.intermediate_size
    keys = width * config.num_key_value_heads // config.num_attention_heads
    a_layer = 2 * width * width + 2 * width * keys + 3 * width * inner
    layers = config.num_hidden_layers - first
    return 2.0 * tokens * (layers * a_layer + width * config.vocab_size)


@torch.inference_mode()
def llama_hooks(module: Any, tokens: Tensor, layers: list[int]) -> Tensor:
    """The same cells by hooks from a prefix, with the three metrics of the race."""
    body, inputs = module.model, tokens[:, :-1]
    residual, states = body.embed_tokens(inputs), []
    turn = body.rotary_emb(residual, torch.arange(inputs.shape[1], device=tokens.device)[None])
    for block in body.layers:
        states.append(residual)
        residual = block(residual, position_embeddings=turn)
    metrics = Usual(module.lm_head(body.norm(residual)), tokens[:, 1:])
    dim = module.config.hidden_size // module.config.num_attention_heads
    projector = torch.linalg.qr(torch.randn(dim, 16)).Q
    projector = (projector @ projector.T).to(residual)

    def project(_module: Any, _inputs: Any, out: Tensor) -> Tensor:
        out[..., :dim] = out[..., :dim] @ projector
        return out

    found = torch.zeros(3, device=tokens.device)
    for first in layers:
        handle = body.layers[first].self_attn.q_proj.register_forward_hook(project)
        residual = states[first]
        for block in body.layers[first:]:
            residual = block(residual, position_embeddings=turn)
        handle.remove()
        found += metrics(module.lm_head(body.norm(residual)))
    return found.cpu()


# Dyck


def dyck(device: torch.device, work: Work, folder: Path) -> None:
    spec = am.load_preset("dyck", work.preset, [f'device="{device}"'])
    task = am.load_task(**spec.task)
    shape = default_model(task, **spec.model)
    few = replace(spec.training, steps=work.steps, evaluate_every=work.steps)
    torch.set_num_threads(2)
    taken, accuracy = {}, {}
    for place in (torch.device("cpu"), device):
        am.train(task, config=replace(few, steps=20), model=shape, device=place)  # warms up

        def some(place: torch.device = place) -> None:
            _, curves = am.train(task, config=few, model=shape, device=place)
            accuracy[place] = curves.filter(split="iid")["accuracy"][-1]

        taken[place] = timed(device, some)
        print(
            f"  {work.steps} steps of {few.batch_tokens:,} tokens on {place}: "
            f"{taken[place]:.1f} s, accuracy {accuracy[place]:.3f}",
            flush=True,
        )
    print(f"  ratio {taken[torch.device('cpu')] / taken[device]:.1f}")
    begun = time.perf_counter()
    run = run_study(spec, folder / "run")
    print(f"  anamorph run dyck --preset {work.preset}: {time.perf_counter() - begun:.1f} s in all")
    for place in (str(device), "cpu"):
        begun = time.perf_counter()
        again = audit_study(run.path, spec.simplify, folder / f"again-{place[:3]}", device=place)
        print(f"  its audit on {place}: {time.perf_counter() - begun:.1f} s", flush=True)
    compare("its numbers on the CPU", run, again)


PARTS = {"equality": equality, "race": race, "profile": profile, "llama": llama, "dyck": dyck}

if __name__ == "__main__":
    main()
