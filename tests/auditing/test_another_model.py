"""Another model as a proxy, against a plain comparison of the two that needs no engine."""

import copy
import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.spatial.distance
import scipy.special
import scipy.stats
import torch

import anamorph as am
from anamorph.auditing.another import load
from anamorph.auditing.audit import fit_on_task, with_identity
from anamorph.auditing.engine import Settings, audit_split
from anamorph.auditing.proxies import ModelProxy, SimplifiedProxy
from anamorph.auditing.works import Auditor, Work, merge, plan
from anamorph.cli import main
from anamorph.errors import AnamorphError
from anamorph.faithfulness.estimates import Stopping
from anamorph.models.sites import Site
from anamorph.models.weights import read_weights
from anamorph.runs.folder import load_run
from anamorph.simplifications import AnotherModel, parse, sweep
from anamorph.studies.specification import read_audit
from anamorph.studies.study import audit_given, audit_study
from anamorph.tasks import Split, Task
from anamorph.tasks.text.task import text_task
from huggingface_models import make
from plain import forward, small_model
from plain_modules import CONTEXT, VOCABULARY, Transformer, large
from tiny_tokenizers import byte_level, letters

transformers = pytest.importorskip("transformers")

Logits = Callable[[np.ndarray], np.ndarray]  # [position] token ids to [position, vocabulary]
OUTPUTS = ["same_prediction", "output_jsd", "output_kl", "model_accuracy", "proxy_accuracy"]
OUTPUTS += ["model_cross_entropy", "proxy_cross_entropy", "proxy_only_right", "model_only_right"]
OUTPUTS += ["flips"]


# A plain comparison of two models: one sequence at a time, in float64, SciPy's formulas.


def compared(first: Logits, second: Logits, split: Split, task: Task) -> dict[str, float]:
    """The mean of each metric over all scored positions."""
    rows = []
    for number, tokens in enumerate(split):
        scored = split.scored[split.offsets[number] : split.offsets[number + 1]]
        ours, theirs = (scipy.special.softmax(f(tokens), axis=-1) for f in (first, second))
        for place in np.flatnonzero(scored):
            p, q, token = ours[place - 1], theirs[place - 1], int(tokens[place])
            said, answer = (task.candidates[x[task.candidates].argmax()] for x in (p, q))
            rows.append(
                {
                    "same_prediction": said == answer,
                    "output_jsd": scipy.spatial.distance.jensenshannon(p, q, base=2) ** 2,
                    "output_kl": scipy.stats.entropy(p, q, base=2),
                    "model_accuracy": said == token,
                    "proxy_accuracy": answer == token,
                    "model_cross_entropy": -np.log2(p[token]),
                    "proxy_cross_entropy": -np.log2(q[token]),
                    "proxy_only_right": answer == token != said,
                    "model_only_right": said == token != answer,
                    "flips": (said == token) != (answer == token),
                }
            )
    return {name: float(np.mean([row[name] for row in rows])) for name in OUTPUTS}


def of_decoder(model: am.Decoder) -> Logits:
    """Its own forward, in float64."""
    double = copy.deepcopy(model).double()
    return lambda tokens: double(torch.from_numpy(tokens.astype(np.int64))[None])[0].numpy()


def of_huggingface(module: Any) -> Logits:
    double = copy.deepcopy(module).double().eval()
    return lambda tokens: double(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy()


def assert_means(results: pl.DataFrame, spec: str, split: str, expected: dict[str, float]) -> None:
    rows = results.filter(
        pl.col("simplification") == spec,
        pl.col("split") == split,
        pl.col("facet").is_null(),
        pl.col("seed") == 0,
    )
    found = dict(rows.select("metric", "value").iter_rows())
    for metric, value in expected.items():
        assert found[metric] == pytest.approx(value, abs=1e-6), metric


# Two checkpoints of one training run.


@pytest.fixture(scope="module")
def checkpoints(task: Task, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The model of a training run on its way, and in the end."""
    folder = tmp_path_factory.mktemp("training")
    early = folder / "early.safetensors"

    def watch(progress: Any) -> None:
        if progress.done == 25:  # what the training itself wrote at step 20
            tensors, metadata = read_weights(folder / "checkpoint.safetensors")
            own = {k.removeprefix("model."): v for k, v in tensors.items() if k[:6] == "model."}
            am.Decoder.of(metadata["identity"]["model"], own, "").save(early)

    config = am.TrainingConfig(steps=60, batch_tokens=512, checkpoint_every=20)
    am.train(task, config=config, out=folder, watch=watch)
    return [early, folder / "model.safetensors"]


@pytest.fixture(scope="module")
def late(checkpoints: list[Path]) -> am.Decoder:
    return am.Decoder.load(checkpoints[1]).eval()


@torch.inference_mode()
def test_two_checkpoints_of_a_training(
    task: Task, checkpoints: list[Path], late: am.Decoder
) -> None:
    spec = f"model({checkpoints[0]})"
    found = am.audit(late, task, [spec, "svd(rank=2)@1.*.key"], sequences=12, fit_sequences=20)
    early = am.Decoder.load(checkpoints[0]).eval()
    for split in task.evaluated:
        part = split.take(np.flatnonzero(np.add.reduceat(split.scored, split.offsets[:-1]))[:12])
        expected = compared(of_decoder(late), of_decoder(early), part, task)
        assert_means(found.results, spec, split.name, expected)
        assert expected["output_kl"] > 0 and expected["same_prediction"] < 1
    row = found.results.filter(simplification=spec).row(0, named=True)
    assert (row["method"], row["family"], row["size_name"]) == ("model", spec, None)
    assert (row["size"], row["control"], row["sites"]) == (None, None, "")
    gaps = found.gaps.filter(simplification=spec, metric="same_prediction", seed=0)
    assert set(gaps["split"]) == {s.name for s in task.evaluated[1:]}


def test_attention_is_compared_at_all_heads_if_they_are_the_same(task: Task) -> None:
    first, second = small_model(task), small_model(task)
    with torch.no_grad():
        second.blocks[1].key.weight.mul_(-1)
    split = task.reference.take(np.arange(5))
    proxy = ModelProxy(AnotherModel("b", second), second, first)
    (sums,) = audit_split(first, split, task.candidates, [proxy]).values()
    whole = sums.index.whole
    found = sums.sums[sums.metrics.index("attention_jsd"), whole].sum()
    total = 0.0
    for number, tokens in enumerate(split):
        ours, theirs = (forward(model, tokens, {}) for model in (first, second))
        start = split.offsets[number]
        for place in np.flatnonzero(split.scored[start : split.offsets[number + 1]]):
            total += np.mean(
                [
                    scipy.spatial.distance.jensenshannon(
                        *(run[Site(layer, head, "pattern")][place - 1] for run in (ours, theirs)),
                        base=2,
                    )
                    ** 2
                    for layer in range(2)
                    for head in range(2)
                ]
            )
    assert float(found) == pytest.approx(total, abs=1e-4) and total > 0.1


def test_other_shapes_are_compared_by_logits_alone(task: Task) -> None:
    first, second = small_model(task), small_model(task, layers=1, heads=4)
    specs = ["svd(rank=1)@0.*.key", AnotherModel("flat", second)]
    results = am.audit(first, task, specs, sequences=10, fit_sequences=20).results
    attention = pl.col("metric").str.contains("attention")
    assert results.filter(attention)["simplification"].unique().sort().to_list() == [
        "identity",
        "svd(rank=1)@0.*.key",
    ]
    counts = np.add.reduceat(task.reference.scored, task.reference.offsets[:-1])
    part = task.reference.take(np.flatnonzero(counts)[:10])
    with torch.inference_mode():
        expected = compared(of_decoder(first), of_decoder(second), part, task)
    assert_means(results, "model(flat)", "iid", expected)


# A model of Hugging Face, and a copy with one layer changed.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a copy with another layer 1, and data."""
    path = tmp_path_factory.mktemp("models")
    module = transformers.LlamaForCausalLM(shape(len(byte_level())))
    torch.manual_seed(0)
    for parameter in module.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    save(module, path / "a")
    with torch.no_grad():
        module.model.layers[1].mlp.up_proj.weight.mul_(1.5)
        module.model.layers[1].self_attn.v_proj.weight.add_(0.1)
    save(module, path / "b with one layer changed")
    rng = random.Random(0)
    for name in "xyz":
        words = ["the", "cat", "sat", "on", "a", "log"]
        lines = [json.dumps({"text": " ".join(rng.choices(words, k=9))}) for _ in range(40)]
        (path / f"{name}.jsonl").write_text("\n".join(lines))
    return path


def shape(vocabulary: int, **changes: Any) -> Any:
    return transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        **{"max_position_embeddings": 64} | changes,
    )


def save(module: Any, folder: Path, tokenizer: Any = None) -> Path:
    module.save_pretrained(folder)
    (tokenizer or byte_level()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(folder: Path) -> Task:
    data = [f"train={folder}/x.jsonl", f"iid={folder}/y.jsonl", f"ood:z={folder}/z.jsonl"]
    return text_task(data, byte_level(), length=16)


@pytest.mark.usefixtures("quick_report")
def test_from_the_command_line(
    folder: Path,
    text: Task,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = f'model("{folder}/b with one layer changed")'
    data = ("train=x.jsonl", "iid=y.jsonl", "ood:z=z.jsonl")
    arguments = ["--model", "a", *(x for d in data for x in ("--data", d)), "--length", "16"]
    arguments += ["--simplify", spec, "--simplify", "svd(rank=2)@1.*.key", "--out", "run"]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["anamorph", "audit", *arguments])
    assert finished() == 0
    run = load_run(folder / "run")
    assert len(list((folder / "run/seed-0/works").glob("*.parquet"))) == 2 * 2
    ours, theirs = (
        of_huggingface(transformers.LlamaForCausalLM.from_pretrained(folder / name))
        for name in ("a", "b with one layer changed")
    )
    with torch.inference_mode():
        for name in ("iid", "z"):
            expected = compared(ours, theirs, text.splits[name], text)
            assert_means(run.results, spec, name, expected)
    assert set(run.spec["fingerprints"]["models"]) == {spec}

    # A changed model is refused by name, and so are sums of another.
    changed = transformers.LlamaForCausalLM.from_pretrained(folder / "a")
    kept = folder / "kept"
    shutil.copytree(folder / "b with one layer changed", kept)
    save(changed, folder / "b with one layer changed")
    assert finished() == 3  # the run folder holds numbers of another
    said = " ".join(capsys.readouterr().err.split())
    assert "one layer changed" in said and "the weights of layer 1 differ" in said
    shutil.rmtree(folder / "b with one layer changed")
    shutil.move(kept, folder / "b with one layer changed")
    (folder / "run/report.html").unlink()
    assert finished() == 0


def finished() -> Any:
    """The exit status of the command line."""
    with pytest.raises(SystemExit) as done:
        main()
    return done.value.code


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_it_is_loaded_in_the_number_format_of_the_model(
    folder: Path, text: Task, dtype: str
) -> None:
    """As far as models are loaded in it: a model in float64 is compared with one in float32."""
    half, path = dtype != "float64", folder / "a"
    model = am.load_pretrained(path, dtype=dtype if half else "float32")[0]  # type: ignore[arg-type]
    model = model if half else am.HuggingFace(model.model.double())
    spec = AnotherModel(str(path))
    assert str(load(spec, model).model.dtype) == f"torch.{dtype if half else 'float32'}"
    rows = am.audit(model, text, [spec], sequences=5, fit_sequences=5).results
    apart = rows.filter(pl.col("facet").is_null(), metric="output_jsd", simplification=str(spec))
    assert len(apart) and apart["value"].max() <= (0 if half else 1e-7)


def test_law_1_a_model_against_itself(folder: Path, text: Task) -> None:
    """Loaded twice, the same object, and the same module wrapped twice."""
    module = transformers.LlamaForCausalLM.from_pretrained(folder / "a").eval()
    model = am.HuggingFace(module)
    others = [
        f"model({folder}/a)",
        AnotherModel("same", model),
        AnotherModel("twice", am.HuggingFace(module)),
    ]
    found = am.audit(model, text, [*others, "svd(rank=1)@1.*.key"], sequences=20)
    assert_itself(found.results, [str(x) for x in others])


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "opt", "neox"])
def test_law_1_of_many_families(name: str) -> None:
    module = make(name)
    model, again = am.HuggingFace(module), am.HuggingFace(copy.deepcopy(module))
    others = [AnotherModel("again", again), AnotherModel("twice", am.HuggingFace(module))]
    found = am.audit(model, random_task(61), others, sequences=20)
    assert_itself(found.results, [str(x) for x in others])


def test_law_1_of_a_hooked_model_and_of_a_masked_one() -> None:
    module = large(Transformer())
    sites = {"*.residual": "blocks.*", "*.*.pattern": am.Hook("blocks.*.attention.weights")}
    model = am.HookedModel(module, sites, context=CONTEXT)
    others = [AnotherModel("same", model), AnotherModel("two", am.HookedModel(module, sites))]
    found = am.audit(model, random_task(VOCABULARY), others)
    assert_itself(found.results, [str(x) for x in others])


def test_law_1_of_a_masked_model() -> None:
    task, model = random_task(61, masked=True), am.HuggingFace(make("bert"))
    others = [AnotherModel("again", am.HuggingFace(make("bert"))), AnotherModel("same", model)]
    assert_itself(am.audit(model, task, others).results, [str(x) for x in others])


def assert_itself(results: pl.DataFrame, specs: list[str]) -> None:
    for spec in specs:
        rows = results.filter(pl.col("simplification") == spec)
        values = {m: set(rows.filter(metric=m)["value"]) for m in rows["metric"].unique()}
        assert values["same_prediction"] == {1.0}
        assert values.get("same_attention", {1.0}) == {1.0}
        for metric in ("output_jsd", "output_kl", "different_errors", "attention_jsd"):
            assert values.get(metric, {0.0}) == {0.0}, (spec, metric)
        assert values["model_cross_entropy"] == values["proxy_cross_entropy"]


def random_task(vocabulary: int, *, masked: bool = False) -> Task:
    """Sequences of 4 to 12 random tokens."""
    rng = np.random.default_rng(0)

    def split(name: str, role: Any) -> Split:
        offsets = np.concatenate([[0], np.cumsum(rng.integers(4, 13, 20))])
        scored = rng.random(offsets[-1]) < 0.5
        scored[offsets[:-1]] = False
        scored[offsets[:-1] + 1] = True
        tokens = rng.integers(4, vocabulary, offsets[-1]).astype(np.int32)
        given = np.where(scored, np.int32(3), tokens) if masked else None
        return Split(name, role, tokens, offsets, scored, masked=given)

    splits = [split("train", "train"), split("iid", "iid"), split("far", "ood")]
    names = tuple(map(str, range(vocabulary)))
    return Task("random", {}, names, np.arange(vocabulary), {s.name: s for s in splits})


# The other laws.


@pytest.fixture(scope="module")
def models(task: Task) -> tuple[am.Decoder, am.Decoder]:
    first, second = small_model(task), small_model(task)
    with torch.no_grad():
        second.blocks[0].up.weight.add_(0.3)
    return first, second


def sums(
    models: tuple[am.Decoder, am.Decoder], task: Task, split: Split, **settings: Any
) -> torch.Tensor:
    model, other = models
    proxy = ModelProxy(AnotherModel("b", other), other, model)
    options = Settings(**settings)
    (cell,) = audit_split(model, split, task.candidates, [proxy], options).values()
    return cell.sums


def test_law_3_padding_and_batches_change_nothing(
    models: tuple[am.Decoder, am.Decoder], task: Task
) -> None:
    split = task.splits["unseen_depth"].take(np.arange(12))
    usual = sums(models, task, split)
    for settings in ({"batch_tokens": 1}, {"batch_tokens": 200}, {"memory": 1}):
        other = sums(models, task, split, **settings)
        torch.testing.assert_close(other, usual, atol=1e-4, rtol=1e-5)


def test_law_4_neither_company_nor_threads_matter(
    models: tuple[am.Decoder, am.Decoder], task: Task
) -> None:
    model, other = models
    split = task.splits["unseen_depth"].take(np.arange(12))
    fitted = fit_on_task(model, with_identity(["svd(rank=1)@0.*.{query,key}"]), task, 20)
    beside = [SimplifiedProxy(x, model) for x in fitted.values()]
    proxy = ModelProxy(AnotherModel("b", other), other, model)
    usual = sums(models, task, split)
    torch.set_num_threads(2)
    found = audit_split(model, split, task.candidates, [*beside, proxy])
    assert torch.equal(found[proxy.spec].sums, usual)


def test_law_5_no_position_sees_its_future(
    models: tuple[am.Decoder, am.Decoder], task: Task
) -> None:
    split = task.splits["unseen_depth"]
    longest = split.take(np.array([int(split.lengths.argmax())]))
    cut = int(np.flatnonzero(longest.scored)[2])
    scored = longest.scored & (np.arange(len(longest.tokens)) <= cut)
    changed = longest.tokens.copy()
    changed[cut + 1 :] = task.candidates[0]
    usual, other = (
        sums(models, task, Split("x", "ood", tokens, longest.offsets, scored))
        for tokens in (longest.tokens, changed)
    )
    assert not np.array_equal(changed, longest.tokens)
    torch.testing.assert_close(other, usual, atol=1e-5, rtol=1e-5)


def test_law_8_a_nan_names_the_model_split_and_sequence(task: Task) -> None:
    model, other = small_model(task), small_model(task)
    with torch.no_grad():
        other.norm.weight.fill_(float("nan"))
    with pytest.raises(AnamorphError, match=r"model\(b\) on split 'iid'.*nan in sequence 0"):
        am.audit(model, task, [AnotherModel("b", other)])


def test_law_11_sessions_are_opened_once_and_everything_is_put_back(text: Task) -> None:
    modules = [transformers.LlamaForCausalLM(shape(len(byte_level()))) for _ in range(2)]
    before = [state_of(module) for module in modules]
    model, other = map(am.HuggingFace, modules)
    opened = []
    prepare = other._prepare
    other._prepare = lambda: opened.append(1) or prepare()  # type: ignore[method-assign]
    proxy = ModelProxy(AnotherModel("b", other), other, model)
    audit_split(model, text.reference, text.candidates, [proxy], Settings(batch_tokens=64))
    assert len(opened) == 1
    assert [state_of(module) for module in modules] == before


def state_of(module: Any) -> list[Any]:
    return [
        (name, part.training, sorted(vars(part)), len(part._forward_hooks))
        for name, part in module.named_modules()
    ]


def test_a_cell_stops_when_its_sequence_is_narrow(
    models: tuple[am.Decoder, am.Decoder], task: Task
) -> None:
    model, _ = models
    split = task.splits["unseen_depth"]
    proxy = ModelProxy(AnotherModel("same", model), model, model)
    settings = Settings(stopping=Stopping(0.5, 0.05))
    (cell,) = audit_split(model, split, task.candidates, [proxy], settings).values()
    assert cell.seen < len(split)


# Works.


def test_every_other_model_is_a_work_of_its_own(task: Task) -> None:
    model = small_model(task)
    proxies = with_identity(["model(a)", "svd(rank=[1,2])@1.*.key", "model(b)"])
    works = plan(proxies, model, ["iid", "far"])
    svd = ("svd(rank=1)@1.*.key", "svd(rank=2)@1.*.key", "identity")
    assert works == [
        Work("iid", 0, svd),
        Work("far", 0, svd),
        *(Work(split, 1, ("model(a)",)) for split in ("iid", "far")),
        *(Work(split, 2, ("model(b)",)) for split in ("iid", "far")),
    ]
    assert json.loads(json.dumps(vars(works[2]))) == {
        "split": "iid",
        "number": 1,
        "proxies": ["model(a)"],
    }


def test_works_in_any_order_are_merged_to_the_same_cells(
    models: tuple[am.Decoder, am.Decoder], task: Task
) -> None:
    model, other = models
    proxies = with_identity([AnotherModel("b", other), "svd(rank=[1,2])@1.*.key"])
    fitted = fit_on_task(model, proxies, task, 20)
    works = plan(proxies, model, [s.name for s in task.evaluated])
    found = []
    for order in (works, works[::-1]):
        auditor = Auditor(model, task, proxies, fitted, 10)
        found.append(merge((work, auditor.execute(work)) for work in order))
    assert len(found[0]) == len(proxies) * len(task.evaluated)
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][key].sums, found[1][key].sums) for key in found[0])
    part = works[0], auditor.execute(works[0])
    with pytest.raises(AnamorphError, match="in two works"):
        merge([part, part])


# What cannot be compared.


def refused(model: Any, task: Task, other: Any, match: str) -> None:
    spec = other if isinstance(other, str) else AnotherModel("b", other)
    with pytest.raises(AnamorphError, match=match):
        am.audit(model, task, [spec])


def test_another_vocabulary_direction_or_context(folder: Path, text: Task) -> None:
    model, _ = am.load_pretrained(folder / "a")
    size = len(byte_level())
    other = am.HuggingFace(transformers.LlamaForCausalLM(shape(size + 3)).eval())
    expected = rf"model\(b\): it has a vocabulary of {size + 3} .* {size}\. Give .* checkpoint"
    refused(model, text, other, expected)
    short = transformers.GPT2Config(vocab_size=size, n_positions=8, n_embd=16, n_head=2, n_layer=1)
    other = am.HuggingFace(transformers.GPT2LMHeadModel(short).eval())
    refused(model, text, other, r"model\(b\): Split .* 15 tokens.*context is 8.*at most 8 tokens")
    both = am.HookedModel(large(Transformer(causal=False)), {"*.residual": "blocks.*"})
    one = am.HookedModel(large(Transformer()), {"*.residual": "blocks.*"})
    few = random_task(VOCABULARY)
    refused(one, few, both, r"model\(b\): The model sees the tokens that it is asked to predict")


def test_another_tokenizer(folder: Path, text: Task, tmp_path: Path) -> None:
    model, _ = am.load_pretrained(folder / "a")
    module = transformers.LlamaForCausalLM(shape(len(byte_level())))
    save(module, tmp_path / "b", letters())
    refused(model, text, f"model({tmp_path}/b)", "its tokenizer is another: token 0 is '\\?', and")
    for file in (tmp_path / "b").glob("*token*"):
        file.unlink()  # without one, ids are taken for the same
    found = am.audit(model, text, [f"model({tmp_path}/b)"], sequences=5)
    assert found.results["simplification"].n_unique() == 2


def test_what_is_not_there_or_not_a_model(task: Task, late: am.Decoder, tmp_path: Path) -> None:
    there = r"RUN/seed-0/model.safetensors, a folder as save_pretrained"
    refused(late, task, "model(nowhere)", rf"model\(nowhere\): .*neither a file nor a.*{there}")
    (tmp_path / "spec.json").write_text("{}")
    refused(late, task, f"model({tmp_path})", rf"is a run folder; .*{there}")
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    refused(late, task, f"model({tmp_path}/x.safetensors)", r"^model\(.*Cannot read .*x.safetens")
    with pytest.raises(AnamorphError, match=r"is a Linear; .*am.HuggingFace\(module\)"):
        AnotherModel("b", torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(AnamorphError, match="names two models"):
        am.audit(late, task, [AnotherModel("b", late), AnotherModel("b", small_model(task))])


# Spec strings.


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("model(runs/a/model.safetensors)", ["runs/a/model.safetensors"]),
        (r"model( C:\models\b )", [r"C:\models\b"]),
        ('model("my models/a (2)")', ["my models/a (2)"]),
        ('model("a\\"b;@[,]")', ['a"b;@[,]']),
        ("model([step10, step20])", ["step10", "step20"]),
        ('model(["a b",c])', ["a b", "c"]),
    ],
)
def test_specs_name_models(text: str, names: list[str]) -> None:
    found = parse(text)
    assert [x.name for x in found] == names
    assert [parse(str(x)) for x in found] == [[x] for x in found]


@pytest.mark.parametrize(
    "text",
    [
        "model(a)@1.*.key",
        "model(a)+svd(rank=2)@1.*.key",
        "svd(rank=2)+model(a)@1.*.key",
        "svd(rank=2)@1.*.key;model(a)",
        "model(a);model(b)",
    ],
)
def test_a_whole_model_is_not_joined(text: str) -> None:
    with pytest.raises(AnamorphError, match=r"is a whole model.*a spec of its own"):
        parse(text)


@pytest.mark.parametrize("text", ["model()", "model(a b)", 'model("a)', "model(a", "model([a)"])
def test_specs_that_cannot_be_read(text: str) -> None:
    with pytest.raises(AnamorphError, match="Cannot read the spec"):
        parse(text)


def test_a_sweep_leaves_it_as_it_is(task: Task) -> None:
    found = sweep(["model(a)", "svd(rank=1)@0.*.key"], small_model(task).sites)
    assert [str(x) for x in found] == ["model(a)", "svd(rank=1)@0.0.key", "svd(rank=1)@0.1.key"]


# Run folders.


@pytest.mark.usefixtures("quick_report")
def test_beside_the_models_of_a_run(
    smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.safetensors"
    shutil.copyfile(smoke_run / "seed-0/model.safetensors", other)
    specs = [f"model({other})", "svd(rank=2)@1.*.key"]
    run = audit_study(smoke_run, specs, tmp_path / "run")
    assert_itself(run.results.filter(seed=0), specs[:1])
    changed = am.Decoder.load(other)
    with torch.no_grad():
        changed.blocks[1].up.weight.add_(0.1)
    changed.save(other)
    with pytest.raises(AnamorphError, match=r"of model\(.*the weights of layer 1 differ"):
        audit_study(smoke_run, specs, tmp_path / "run")


@pytest.mark.usefixtures("quick_report")
def test_a_given_model_that_changes_meanwhile_is_told(text: Task, tmp_path: Path) -> None:
    modules = [transformers.LlamaForCausalLM(shape(len(byte_level()))).eval() for _ in range(2)]
    model, other = map(am.HuggingFace, modules)

    def watch(event: Any) -> None:
        if "audit on" in event.step:
            with torch.no_grad():
                modules[1].lm_head.weight.add_(0.01)

    with pytest.raises(AnamorphError, match=r"model\(b\) was changed while .*the rest"):
        audit_given(model, text, [AnotherModel("b", other)], tmp_path / "run", watch=watch)


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "audit.toml").write_text(
        "model = 'a'\nout = 'run'\ndata = {iid = 'x.jsonl'}\n"
        "simplify = ['model(b)', 'model([\"/c d\", e])', 'svd(rank=[1,2])@1.*.key']\n"
    )
    spec, _ = read_audit(tmp_path / "audit.toml", {})
    assert list(spec.simplify) == [
        f"model({tmp_path}/b)",
        'model("/c d")',
        f"model({tmp_path}/e)",
        "svd(rank=[1,2])@1.*.key",
    ]
