"""A number in a run folder belongs to the weights, the data and the version in its spec."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import transformers
from torch import Tensor, nn

import anamorph as am
from anamorph.models.base import Model
from anamorph.runs import opening
from anamorph.runs.folder import Run
from anamorph.simplifications import (
    SIMPLIFICATIONS,
    Simplification,
    Simplified,
    check_readable,
)
from anamorph.studies.study import audit_given, audit_study
from anamorph.tasks import Task
from commands import SOURCE
from plain import small_model
from tiny_tokenizers import byte_level

pytestmark = pytest.mark.usefixtures("quick_report")

SPECS = ["svd(rank=[1,3])@1.*.{query,key}", "onehot@1.*.pattern"]


def audit(model: Model, task: Task, out: Path, **changes: Any) -> Run:
    options = {"by": "all", "sequences": 10, "fit_sequences": 20} | changes
    return audit_given(model, task, options.pop("simplify", SPECS), out, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture
def model(task: Task) -> am.Decoder:
    return small_model(task)


@pytest.fixture
def run(model: am.Decoder, task: Task, tmp_path: Path) -> Run:
    return audit(model, task, tmp_path / "run")


def refused(message: str, run: Run, model: Any, task: Task, **changes: Any) -> None:
    """Whole, or half of it still to be computed: nothing of it is used or changed."""
    for half in (False, True):
        if half:
            (run.path / "report.html").unlink(missing_ok=True)
            run.work(0, "iid", 0).unlink(missing_ok=True)
        before = contents(run.path)
        with pytest.raises(am.AnamorphError, match=message):
            audit(model, task, run.path, **changes)
        assert contents(run.path) == before


# The model


def test_a_model_that_was_trained_further(run: Run, model: am.Decoder, task: Task) -> None:
    further = copy.deepcopy(model)
    with torch.no_grad():
        further.blocks[1].value.weight[2, 1] += 1e-6  # as little as one number
    refused(r"\(the weights of layer 1 differ\)\. Give another --out", run, further, task)
    with torch.no_grad():
        further.embedding.weight[0] += 1
    refused("the weights of layer 1, the rest differ", run, further, task)


def test_a_model_changed_in_memory(run: Run, model: am.Decoder, task: Task) -> None:
    with torch.no_grad():
        model.blocks[0].up.bias += 0.1
    refused("the weights of layer 0 differ", run, model, task)


def test_equal_weights_in_another_object_are_the_same_model(
    run: Run, model: am.Decoder, task: Task
) -> None:
    assert audit(copy.deepcopy(model), task, run.path).complete


@pytest.mark.parametrize("how", ["a hook", "a shape", "a number format"])
def test_a_model_of_equal_weights_that_is_another(
    run: Run, model: am.Decoder, task: Task, how: str
) -> None:
    if how == "a hook":
        model.blocks[0].output.register_forward_hook(lambda m, i, out: 0.9 * out)
        refused("gives other logits than it did: a hook, an adapter", run, model, task)
    elif how == "a shape":
        other = am.Decoder(replace(model.config, heads=1)).eval()
        other.load_state_dict(model.state_dict())
        refused("model.heads: there 2, asked 1", run, other, task)
    else:
        refused("the weights of layer 0, layer 1, the rest differ", run, model.double(), task)


def test_a_configuration_that_few_tokens_do_not_show(tmp_path: Path) -> None:
    """A window of ten tokens, which the shorter sequences of a probe never fill."""
    config = transformers.MistralConfig(
        vocab_size=len(byte_level()),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        sliding_window=None,
    )
    torch.manual_seed(0)
    module = transformers.MistralForCausalLM(config).eval()
    texts = {
        role: [f"{i} the cat sat on the mat and {i} dogs ran" for i in range(8 * n, 8 * n + 8)]
        for n, role in enumerate(("train", "iid", "ood"))
    }
    own = am.text_task(texts, byte_level(), length=30)
    specs = {"simplify": ["svd(rank=2)@1.0.key"]}
    run = audit(am.HuggingFace(module), own, tmp_path / "run", **specs)
    windowed = copy.deepcopy(config)
    windowed.sliding_window = 10
    other = transformers.MistralForCausalLM(windowed).eval()
    other.load_state_dict(module.state_dict())
    refused("its configuration differs", run, am.HuggingFace(other), own, **specs)
    assert audit(am.HuggingFace(copy.deepcopy(module)), own, run.path, **specs).complete


def test_a_run_folder_and_its_model_may_be_moved(
    run: Run, model: am.Decoder, task: Task, tmp_path: Path
) -> None:
    places = {"data": ["iid=a"], "tokenizer": "here", "files": {"a": "1f"}}
    moved = {"data": ["iid=/b/a"], "tokenizer": "there", "files": {"/b/a": "1f"}}
    here, there = (replace(task, spec={"name": "text", **some}) for some in (places, moved))
    first = audit(model, here, tmp_path / "one", name="model")
    shutil.move(first.path, tmp_path / "two")
    assert audit(model, there, tmp_path / "two", name="moved").complete
    exchanged = replace(task, spec={"name": "text", **moved, "files": {"/b/a": "2f"}})
    with pytest.raises(am.AnamorphError, match=r"task\.files"):
        audit(model, exchanged, tmp_path / "two")


def test_a_hooked_module_with_other_tensors_than_parameters(task: Task, tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed = torch.nn.Embedding(len(task.vocabulary), 8)
            self.mix = torch.nn.Linear(8, 8)
            self.head = torch.nn.Linear(8, len(task.vocabulary))
            self.scale = torch.tensor(1.0)  # no parameter, no buffer

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.scale * self.mix(self.embed(tokens)))

    net = Net().eval()
    model = am.HookedModel(net, {"0.residual": "mix"})
    run = audit(model, task, tmp_path / "run", simplify=["svd(rank=2)@0.residual"])
    net.scale = torch.tensor(0.5)
    refused("gives other logits", run, model, task, simplify=["svd(rank=2)@0.residual"])


def test_a_model_without_fingerprint(model: am.Decoder, task: Task, tmp_path: Path) -> None:
    model.fingerprint = dict  # type: ignore[method-assign,assignment]
    with pytest.raises(am.AnamorphError, match=r"Decoder has no fingerprint.*am\.audit"):
        audit(model, task, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("how", ["weights", "a hook", "weights while fitting"])
def test_a_model_that_changes_while_it_is_audited(
    model: am.Decoder, task: Task, tmp_path: Path, how: str
) -> None:
    """Nothing of the changed model is kept: put back, it goes on to the right numbers."""
    usual = audit(copy.deepcopy(model), task, tmp_path / "usual")
    changed: list[Any] = []

    def meddle(event: am.progress.Event) -> None:
        step = "fitting" if "fitting" in how else "audit on unseen_long"
        if step in event.step and not changed:
            changed.append(None)
            if how == "a hook":
                down = model.blocks[1].down
                changed.append(down.register_forward_hook(lambda m, i, out: out / 2))
            else:
                model.blocks[1].down.weight.data *= 2

    with pytest.raises(am.AnamorphError, match="changed while it was audited"):
        audit(model, task, tmp_path / "run", watch=meddle)
    if how == "a hook":
        changed[1].remove()
    else:
        model.blocks[1].down.weight.data /= 2
    again = audit(model, task, tmp_path / "run")
    assert again.results.equals(usual.results)


# The data


def changed(task: Task, name: str, **arrays: np.ndarray) -> Task:
    return replace(task, splits=task.splits | {name: replace(task.splits[name], **arrays)})


def test_data_of_equal_counts(run: Run, model: am.Decoder, task: Task) -> None:
    split = task.splits["unseen_long"]
    swapped = split.take(np.array([1, 0, *range(2, len(split))]))
    other = replace(task, splits=task.splits | {"unseen_long": swapped})
    refused(r"\('unseen_long' differs\)", run, model, other)
    scored = split.scored.copy()
    scored[np.flatnonzero(scored)[0]] = False
    refused("'unseen_long' differs", run, model, changed(task, "unseen_long", scored=scored))
    tokens = task.train.tokens.copy()
    tokens[5] = tokens[6]
    refused("'train' differs", run, model, changed(task, "train", tokens=tokens))
    fewer = replace(task, candidates=task.candidates[:-1])
    refused("the data of candidates differ", run, model, fewer)


def test_a_task_that_was_made_by_hand(model: am.Decoder, task: Task, tmp_path: Path) -> None:
    bare = replace(task, spec={"name": "mine"})
    audit(model, bare, tmp_path / "run")
    other = changed(bare, "iid", scored=bare.splits["iid"].scored & (np.arange(1)[0] == 0))
    assert audit(model, other, tmp_path / "run").complete  # the same values
    codes = next(iter(bare.splits["iid"].facets.items()))
    facet = replace(codes[1], codes=codes[1].codes.copy())
    facet.codes[np.flatnonzero(facet.codes >= 0)[0]] ^= 1
    facets = dict(bare.splits["iid"].facets) | {codes[0]: facet}
    with pytest.raises(am.AnamorphError, match="'iid' differs"):
        audit(model, changed(bare, "iid", facets=facets), tmp_path / "run")  # type: ignore[arg-type]


# Simplifications


class FromFile(Simplification):
    """Multiplies by a matrix in a file."""

    name = "fromfile"

    def __init__(self, *, path: str) -> None:
        self.path = path

    def statistic(self, dim: int) -> None:
        return None

    def learn(self, statistic: Any) -> "FromFile":
        return self

    def __call__(self, x: Tensor) -> Tensor:
        return x @ torch.from_numpy(np.load(self.path)).to(x)


FACTOR = 0.5


def half(x: Tensor) -> Tensor:
    return x * FACTOR


class ByConstant(FromFile):
    """Multiplies by a constant of its module."""

    name = "byconstant"

    def __init__(self) -> None:
        pass

    def __call__(self, x: Tensor) -> Tensor:
        return half(x)


class Unregistered(ByConstant):
    name = "unregistered"


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in (FromFile, ByConstant):
        monkeypatch.setitem(SIMPLIFICATIONS, kind.name, kind)


def test_an_exchanged_file_of_a_simplification(
    registered: None, model: am.Decoder, task: Task, tmp_path: Path
) -> None:
    for where in ("{p}@1.mlp", "svd(rank=2)+{p}@1.mlp", "onehot@1.*.pattern;{p}@0.mlp"):
        np.save("p.npy", np.eye(8, dtype=np.float32))
        spec = [where.format(p="fromfile(path=p.npy)")]
        run = audit(model, task, tmp_path / where[:4], simplify=spec)
        assert audit(model, task, run.path, simplify=spec).complete
        np.save("p.npy", np.zeros((8, 8), np.float32))
        refused("reads or holds, or its code, differs", run, model, task, simplify=spec)


def test_exchanged_code_of_a_simplification(
    registered: None,
    model: am.Decoder,
    task: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = ["byconstant@1.mlp"]
    run = audit(model, task, tmp_path / "run", simplify=spec)
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "FACTOR", 0.25)
        refused(
            "what byconstant reads or holds, or its code, differs", run, model, task, simplify=spec
        )
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "half", lambda x: x / 3)
        refused("what byconstant reads", run, model, task, simplify=spec)
    with monkeypatch.context() as patch:
        patch.setattr(ByConstant, "__call__", lambda self, x: x * 2)
        refused("what byconstant reads", run, model, task, simplify=spec)


class ByAnything(ByConstant):
    """Holds whatever a hyper-parameter or an attribute of a class may be."""

    name = "byanything"
    held: Any = None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (torch.ones(2), torch.zeros(2)),
        (np.ones(2), np.ones(2, np.float32)),
        (np.float32(1), np.float32(2)),
        ({1, 2}, {1, 3}),
        ({"a": [1, (2,)]}, {"a": [1, (3,)]}),
        (nn.Linear(2, 2), nn.Linear(2, 2)),
        (am.SVD(rank=1), am.SVD(rank=2)),
        (lambda x: x, lambda x: 2 * x),
        (SimpleNamespace(a=1), SimpleNamespace(a=2)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_a_simplification_holds_counts(
    before: Any, after: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for value in (before, before, after):
        own = ByAnything()
        own.mine = value
        monkeypatch.setattr(ByAnything, "held", None)
        as_attribute = own.fingerprint()
        monkeypatch.setattr(ByAnything, "held", value)
        found.append((as_attribute, ByAnything().fingerprint()))
    assert found[0] == found[1]
    assert found[0][0] != found[2][0] and found[0][1] != found[2][1]


def test_what_a_fingerprint_of_ours_does_not_depend_on() -> None:
    fresh = am.SVD(rank=2)
    used = am.SVD(rank=2).fit(torch.randn(20, 4))
    assert fresh.fingerprint() == used.fingerprint()


def test_a_simplification_that_could_not_be_loaded_again(
    registered: None, model: am.Decoder, task: Task, tmp_path: Path
) -> None:
    Path("a b.npy").write_bytes(b"")
    for simplification, message in (
        (Unregistered(), "no simplification 'unregistered'"),
        (FromFile(path=Path("a b.npy")), "Cannot read the spec"),
        (FromFile(path=None), "reads as"),
    ):
        with pytest.raises(am.AnamorphError, match=f"could not be resumed.*{message}"):
            audit(model, task, tmp_path / "run", simplify=[simplification @ "1.mlp"])
    assert not (tmp_path / "run").exists()
    for path in ("a b.npy", "12"):  # text in quotes is read as it was
        check_readable([Simplified((FromFile(path=path) @ "1.mlp",))])


# Versions


def test_another_version_of_anamorph(
    run: Run, model: am.Decoder, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "version", lambda: "9.9")
    refused(r"made by anamorph 0\.\S+, and this is 9\.9", run, model, task)


def test_a_run_of_before_there_were_fingerprints(run: Run, model: am.Decoder, task: Task) -> None:
    spec = {k: v for k, v in run.spec.items() if k not in ("anamorph", "fingerprints")}
    (run.path / "spec.json").write_text(json.dumps(spec))
    refused("made by anamorph None", run, model, task)


def test_another_version_of_another_package_is_told(
    run: Run, model: am.Decoder, task: Task
) -> None:
    environment = dict(run.spec["environment"]) | {"torch": "2.8.0", "tokenizers": "0.1"}
    (run.path / "spec.json").write_text(json.dumps({**run.spec, "environment": environment}))
    audit(model, task, run.path)  # it is complete: nothing is mixed
    (run.path / "report.html").unlink()
    with pytest.warns(UserWarning, match=r"begun with torch 2\.8\.0, now 2.*; tokenizers 0\.1"):
        audit(model, task, run.path)
    assert {"transformers", "tokenizers", "gguf"} <= set(environment)


# Whatever lies in the folder


@pytest.mark.parametrize("part", ["weights", "simplifications", "data", "options"])
def test_a_work_of_something_else(run: Run, model: am.Decoder, task: Task, part: str) -> None:
    file = run.work(0, "iid", 0)
    metadata = pl.read_parquet_metadata(file)
    names = ("weights", "simplifications", "data", "options")
    origin = {name: metadata[name] for name in names} | {part: "other"}
    pl.read_parquet(file).write_parquet(file, metadata=origin)
    refused_at_work(f"holds sums of other {part} than there are now", run, model, task)


def refused_at_work(message: str, run: Run, model: am.Decoder, task: Task) -> None:
    (run.path / "report.html").unlink()
    before = contents(run.path)
    with pytest.raises(am.AnamorphError, match=message):
        audit(model, task, run.path)
    assert contents(run.path) == before


def test_fits_of_another_run(run: Run, model: am.Decoder, task: Task, tmp_path: Path) -> None:
    name = "seed-0/simplifications.safetensors"
    other = audit(small_model(task, mlp=24), task, tmp_path / "other")
    (run.path / name).write_bytes((other.path / name).read_bytes())
    refused_at_work("was fitted to another model or other data", run, model, task)


def test_a_work_without_some_proxies(run: Run, model: am.Decoder, task: Task) -> None:
    file = run.work(0, "iid", 0)
    table, metadata = pl.read_parquet(file), pl.read_parquet_metadata(file)
    origin = {k: v for k, v in metadata.items() if not k.startswith("ARROW")}
    table.filter(pl.col("proxy") != "identity").write_parquet(file, metadata=origin)
    (run.path / "report.html").unlink()
    with pytest.raises(am.AnamorphError, match=r"does not hold \d+ rows of .*Delete it"):
        audit(model, task, run.path)


@pytest.mark.parametrize("names", [("Java", "java"), ("../up", "."), ("a/b", "a\\b"), ("con", "é")])
def test_names_of_splits(
    model: am.Decoder, task: Task, tmp_path: Path, names: tuple[str, str]
) -> None:
    """As any file system takes them; each split has its own numbers."""
    own = {
        name: replace(task.splits[s], name=name)
        for name, s in zip(names, ("unseen_long", "unseen_depth"), strict=True)
    }
    renamed = replace(task, splits={k: task.splits[k] for k in ("train", "iid")} | own)
    run = audit(model, renamed, tmp_path / "run")
    usual = audit(model, task, tmp_path / "usual").results
    for name, split in zip(names, ("unseen_long", "unseen_depth"), strict=True):
        columns = ("simplification", "metric", "facet", "level", "seed", "value", "tokens")
        mine, theirs = (
            r.filter(pl.col("split") == s).select(columns)
            for r, s in ((run.results, name), (usual, split))
        )
        assert mine.equals(theirs)
    written = [f.relative_to(tmp_path / "run") for f in (tmp_path / "run").rglob("*")]
    assert len({str(f).lower() for f in written}) == len(written)
    assert {p.name for p in tmp_path.iterdir()} == {"run", "usual"}


# One process at a time


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a process that holds the folder `run` until it is killed."""
    code = (
        "import sys, time; from anamorph.runs.held import held; from pathlib import Path\n"
        "with held(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    begun = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "run")],
            env=os.environ | {"PYTHONPATH": str(SOURCE)},
            stdout=subprocess.PIPE,
            text=True,
        )
        begun.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    yield start
    for process in begun:
        process.kill()
        process.wait()


def test_a_second_process_is_refused(
    holder: Any, model: am.Decoder, task: Task, tmp_path: Path
) -> None:
    process = holder()
    theirs = tmp_path / "run" / f".spec.json.{process.pid}.tmp"
    theirs.write_text("half")
    message = rf"run is being worked on by process {process.pid} on \S+ since .*Wait for it"
    with pytest.raises(am.AnamorphError, match=message):
        audit(model, task, tmp_path / "run")
    assert theirs.exists()
    assert not (tmp_path / "run" / "spec.json").exists()
    process.send_signal(signal.SIGKILL)  # the system lets go of what it held
    process.wait()
    assert audit(model, task, tmp_path / "run").complete
    assert not theirs.exists()


def test_two_threads_of_one_process(model: am.Decoder, task: Task, tmp_path: Path) -> None:
    def again(event: am.progress.Event) -> None:
        if "noise" in event.step:
            audit(model, task, tmp_path / "run")

    with pytest.raises(am.AnamorphError, match=f"worked on by process {os.getpid()}"):
        audit(model, task, tmp_path / "run", watch=again)
    assert not (tmp_path / "run" / opening.HOLDER).exists()
    assert audit(model, task, tmp_path / "run").complete


def test_a_complete_run_can_be_read_while_it_is_held(
    run: Run, model: am.Decoder, task: Task, holder: Any
) -> None:
    holder()
    assert audit(model, task, run.path).complete


# Studies and their models


def test_a_studys_model_that_was_exchanged(smoke_run: Path, tmp_path: Path) -> None:
    """A complete run and one that is audited again, both."""
    out = tmp_path / "run"
    shutil.copytree(smoke_run, out)
    file = out / "seed-0" / "model.safetensors"
    other = am.Decoder.load(file)
    other.blocks[0].down.bias.data += 0.01
    other.save(file)
    spec = am.load_preset("dyck", "smoke")
    with pytest.raises(am.AnamorphError, match=r"another than the one.*weights of layer 0 differ"):
        am.run_study(spec, out, preset="smoke", workers=1)
    with pytest.raises(am.AnamorphError, match=r"another than the one.*weights of layer 0 differ"):
        audit_study(out, ["svd(rank=1)@1.*.key"], tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_audit_again_of_a_model_given_in_python(run: Run, tmp_path: Path) -> None:
    with pytest.raises(am.AnamorphError, match=r"given in Python.*am\.audit_given"):
        audit_study(run.path, ["svd(rank=1)@1.*.key"], tmp_path / "again")
