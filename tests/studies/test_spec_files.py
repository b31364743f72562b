"""A study as a file: what it says, what it leaves to a preset, and a run done again."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import anamorph as am
from anamorph.errors import AnamorphError
from anamorph.studies.pairs import PairsSpec
from anamorph.studies.spec_files import read_study, recorded_audit
from anamorph.studies.specification import StudySpec, load_preset
from tiny_tokenizers import byte_level

OWN = """
preset = "dyck-smoke"
out = "runs/mine"
simplify = ["svd(rank=[1,4])@1.*.key"]
seeds = [3]

[task]
train = 100
test = 20

[training]
steps = 5

[audit]
sequences = 10
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return written(tmp_path / "own.toml", OWN)


def written(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def test_what_a_file_does_not_say_is_the_presets(own: Path) -> None:
    changes = ["task.train=100", "task.test=20", "training.steps=5", "audit.sequences=10"]
    spec = load_preset(
        "dyck", "smoke", [*changes, "seeds=[3]"], simplify=["svd(rank=[1,4])@1.*.key"]
    )
    found = read_study(own)
    assert found.spec == spec and found.preset is None
    assert found.out == own.parent / "runs/mine"
    assert spec.training.batch_tokens == 1024 and spec.task["k"] == 4  # of the preset
    changed = read_study(own, ["training.steps=7", "task.k=5"], 2, ["onehot@1.*.pattern"]).spec
    assert isinstance(changed, StudySpec)
    assert (changed.training.steps, changed.task["k"], changed.seeds) == (7, 5, (0, 1))
    assert changed.simplify == ("onehot@1.*.pattern",)


def test_any_simplification_replaces_all_of_the_presets(own: Path) -> None:
    each = OWN.replace("simplify = ", "each_head = ").replace("dyck-smoke", "dyck-views")
    found = read_study(written(own, each)).spec
    assert isinstance(found, StudySpec)
    assert load_preset("dyck", "views").simplify and not found.simplify and not found.each_layer
    assert found.each_head == ("svd(rank=[1,4])@1.*.key",)
    given = read_study(own, simplify=["onehot@1.*.pattern"]).spec
    assert isinstance(given, StudySpec)
    assert (given.simplify, given.each_head) == (("onehot@1.*.pattern",), ())


def test_without_a_preset_a_file_says_it_all(tmp_path: Path) -> None:
    text = 'simplify = ["onehot@1.*.pattern"]\ntask = {name = "dyck", k = 3}\n'
    found = read_study(written(tmp_path / "all.toml", text)).spec
    assert found == StudySpec(task={"name": "dyck", "k": 3}, simplify=("onehot@1.*.pattern",))
    pairs = read_study(written(tmp_path / "p.toml", 'preset = "texts-smoke"\nlength = 12\n')).spec
    assert isinstance(pairs, PairsSpec) and pairs.length == 12


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (OWN.replace("seeds", "sedes"), "the key 'sedes', .*; did you mean 'seeds'"),
        (OWN.replace("steps", "step"), r"training\.step: there is no .*did you mean 'steps'"),
        (OWN.replace("dyck-smoke", "dyck-smok"), "no preset 'smok' for the task 'dyck'"),
        (OWN.replace("dyck-smoke", "dyck"), "must name a task and its preset"),
        (OWN.replace('"runs/mine"', "3"), "out must be the path"),
        ("plugin = 'parts.py'\n" + OWN, "the key 'plugin', but a file cannot have code executed"),
        ("model = 'm'\nout = 'x'\n[data]\niid = 'a'\n", "give it to `anamorph audit"),
        ("task = {name = 'dyck'}\n", "there is no simplification"),
        ("x = = 1", "is not TOML"),
    ],
)
def test_what_does_not_fit_is_named(own: Path, text: str, said: str) -> None:
    with pytest.raises(AnamorphError, match=said):
        read_study(written(own, text))


@pytest.mark.usefixtures("quick_report")
def test_a_run_is_done_again_from_its_own_specification(
    anamorph: Any, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert anamorph("run", own).code == 0
    first = am.load_run(tmp_path / "runs/mine")
    spec = first.path / "spec.json"
    nowhere = anamorph("run", spec)
    assert nowhere.code == 2 and "Give --out" in nowhere.error
    assert anamorph("run", spec, "--out", "again").code == 0
    again = am.load_run(tmp_path / "again")
    assert again.results.equals(first.results) and again.gaps.equals(first.gaps)
    same, now = ({k: v for k, v in r.spec.items() if k != "environment"} for r in (first, again))
    assert now == same
    done = anamorph("run", spec, "--out", first.path)  # the same study: it is complete
    assert done.code == 0 and "nothing was done again" in done.out
    other = anamorph("run", spec, "--out", "other", "--set", "training.steps=6", "--seeds", "1")
    assert other.code == 0
    assert am.load_run("other").spec["training"]["steps"] == 6
    hint = anamorph("audit", spec, "--out", "x")
    assert hint.code == 2 and f"`anamorph run {spec}` does it again" in " ".join(hint.error.split())


def test_what_is_no_specification_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AnamorphError, match=r"has no study, task.*not the spec.json of a run"):
        read_study(written(tmp_path / "claims.json", "{}"))
    spec = dict.fromkeys(("study", "task", "simplify", "audit", "seeds", "threads"))
    spec |= {"training": None, "model": {"name": "mine"}}
    path = written(tmp_path / "spec.json", json.dumps(spec))
    with pytest.raises(AnamorphError, match=r"given in Python \(mine\)"):
        read_study(path)
    spec["plugins"] = [{"path": "/some/parts.py", "fingerprint": "0"}]
    written(path, json.dumps(spec))
    with pytest.raises(AnamorphError, match=r"plugin parts\.py, which is not loaded"):
        read_study(path)


@pytest.mark.usefixtures("quick_report")
def test_the_audit_of_a_given_model_is_done_again(
    anamorph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer, rng = byte_level(), random.Random(0)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=32
    )
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained("model")
    tokenizer.save_pretrained("model")
    for name in "ab":
        texts = [" ".join(rng.choices(["cat", "dog", "sat"], k=6)) for _ in range(40)]
        written(tmp_path / f"{name}.jsonl", "".join(f'{{"text": "{t}"}}\n' for t in texts))
    options = ("--data", "iid=a.jsonl", "--data", "ood:b=b.jsonl", "--fit-on", "iid")
    options += ("--fit-sequences", 10, "--sequences", 10, "--length", 12)
    spec = ("--simplify", "svd(rank=[1,2])@1.*.key")
    done = anamorph("audit", "--model", "model", *options, *spec, "--out", "first")
    assert done.code == 0, done.error
    first, file = am.load_run("first"), "first/spec.json"
    recorded = recorded_audit(Path(file))
    assert recorded["length"] == 12 and recorded["simplify"] == [spec[1]]
    for verb in ("run", "audit"):
        done = anamorph(verb, file, "--out", verb)
        assert done.code == 0, done.error
        assert am.load_run(verb).results.equals(first.results)
    done = anamorph("audit", file, "--simplify", "pca(rank=1)@1.*.key", "--length", 8, "--out", "x")
    assert done.code == 0, done.error
    assert am.load_run("x").spec["source"]["length"] == 8
    told = anamorph("audit", file, "--dry-run")
    assert told.code == 0 and "2 works with 10 cells in all" in told.out, told.out
    refused = anamorph("run", file, "--set", "length=8", "--out", "y")
    assert (
        refused.code == 2 and "--set and --seeds are for models that are trained" in refused.error
    )
