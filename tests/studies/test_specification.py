"""Presets and the changes that `--set` makes to them."""

import codecs
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import anamorph
from anamorph.errors import AnamorphError
from anamorph.studies.specification import (
    GivenSpec,
    StudySpec,
    load_preset,
    paper_steps,
    presets,
    read_audit,
)

FOLDER = Path(anamorph.__file__).parent / "studies/presets"


def test_how_long_the_preset_paper_trains() -> None:
    for task in ("dyck", "code"):
        there = tomllib.loads((FOLDER / f"{task}-paper.toml").read_text())
        assert paper_steps(task) == there["training"]["steps"]
    assert paper_steps("text") is None


def test_the_presets_are_the_files() -> None:
    assert presets("dyck") == sorted(
        f.stem.removeprefix("dyck-") for f in FOLDER.glob("dyck-*.toml")
    )
    assert {"smoke", "demo", "paper"} <= set(presets("dyck"))
    assert presets("dy") == presets("other") == []


@pytest.mark.parametrize("name", ["smoke", "demo", "paper"])
def test_a_preset_says_what_its_file_says(name: str) -> None:
    values = tomllib.loads((FOLDER / f"dyck-{name}.toml").read_text("utf-8"))
    spec = load_preset("dyck", name)
    assert spec.task == values["task"]
    assert spec.simplify == tuple(values["simplify"])
    assert spec.seeds == tuple(values["seeds"])
    for section in ("training", "audit"):
        for key, value in values[section].items():
            assert getattr(getattr(spec, section), key) == value
    assert StudySpec.of(spec.model_dump(), "a copy") == spec


def test_the_paper_preset_is_the_paper() -> None:
    spec = load_preset("dyck", "paper")
    assert {k: spec.task[k] for k in ("k", "m", "train")} == {"k": 20, "m": 10, "train": 200_000}
    assert len(spec.seeds) == 3


def test_settings_change_one_thing_each() -> None:
    plain = load_preset("dyck", "smoke")
    settings = (
        "training.steps=17",
        "training.learning_rate = 1e-3",
        "training.optimizer=adamw",
        'model.positions="rotary"',
        "model.layers=3",
        "audit.thresholds.tolerance=0.05",
        'simplify=["onehot@1.*.pattern", "svd(rank=2)@1.*.key"]',
        "seeds=[4, 2]",
        "task.max_length=4_0",
    )
    spec = load_preset("dyck", "smoke", settings)
    assert spec.training.steps == 17
    assert spec.training.learning_rate == 0.001
    assert spec.training.optimizer == "adamw"
    assert spec.model == plain.model | {"positions": "rotary", "layers": 3}
    assert spec.audit.thresholds.tolerance == 0.05
    assert spec.audit.thresholds.faithful == plain.audit.thresholds.faithful
    assert spec.simplify == ("onehot@1.*.pattern", "svd(rank=2)@1.*.key")
    assert spec.seeds == (4, 2)
    assert spec.task == plain.task | {"max_length": 40}
    assert spec.training.batch_tokens == plain.training.batch_tokens
    assert load_preset("dyck", "smoke") == plain, "a preset must not remember"


def test_the_last_setting_wins_and_values_may_hold_equals() -> None:
    spec = load_preset("dyck", "smoke", ["training.steps=1", "training.steps=2", "task.x=a=b"])
    assert spec.training.steps == 2 and spec.task["x"] == "a=b"


def test_a_number_of_seeds() -> None:
    assert load_preset("dyck", "smoke", seeds=3).seeds == (0, 1, 2)
    for wrong in (0, -1):
        with pytest.raises(AnamorphError, match=f"at least 1 seed; got {wrong}"):
            load_preset("dyck", "smoke", seeds=wrong)


def test_an_unknown_preset_is_an_error_that_lists_them() -> None:
    with pytest.raises(AnamorphError, match=r"no preset 'huge' for the task 'dyck'.*smoke"):
        load_preset("dyck", "huge")
    with pytest.raises(AnamorphError, match="tasks with presets are: code, dyck"):
        load_preset("dick", "demo")
    with pytest.raises(AnamorphError, match="no preset"):
        load_preset("dyck", "../dyck-demo")


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("training.steps", "Cannot read the setting 'training.steps'"),
        ("training.=5", "Cannot read the setting"),
        ("=5", "Cannot read the setting"),
        (
            "training.step=5",
            r"training\.step: there is no such setting \(did you mean 'steps'\?\); expected",
        ),
        ("trainig.steps=5", "trainig"),
        ("training.steps=0", r"steps must be a whole number from 1; got 0"),
        ("training.steps=-5", r"steps must be a whole number from 1; got -5"),
        ("training.steps=many", r"training\.steps: .*given: 'many'"),
        ("training.steps=1.5", r"training\.steps: .*given: 1\.5"),
        ("training.learning_rate=0", "learning_rate must be a number above 0"),
        ("training.learning_rate=nan", "learning_rate must be a number above 0"),
        ("training.weight_decay=-0.1", "weight_decay must be a number from 0 to 1"),
        ("training.warmup=1.5", "warmup must be a number from 0 to 1"),
        ("training.optimizer=sgd", r"training\.optimizer: .*'muon' or 'adamw'"),
        ("training.precision=8-bit", r"training\.precision"),
        ("audit.sequences=1", "audit: sequences must be a whole number from 2; got 1"),
        ("audit.learnt=2", "audit: learnt must be a number from 0 to 1; got 2"),
        ("audit.fit_sequences=0", "audit: fit_sequences must be a whole number from 1; got 0"),
        ("audit.resamples=1000", r"audit\.resamples"),
        ("audit.other=1", r"audit\.other"),
        ("audit.thresholds.faithfull=1", "faithfull"),
        ("threads=0", "threads"),
        ("seeds=[]", "seeds"),
        ("seeds=[-1]", r"seeds\.0: .*given: -1"),
        ("seeds=[1, 1]", "seeds"),
        ("seeds=2", "seeds"),
        ("simplify=svd", "simplify"),
        ("seeds.first=1", "seeds has no keys"),
        ("task=dyck", "task"),
    ],
)
def test_settings_that_do_not_fit_are_errors_that_name_them(setting: str, named: str) -> None:
    with pytest.raises(AnamorphError, match=named):
        load_preset("dyck", "smoke", [setting])


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(AnamorphError) as error:
        load_preset("dyck", "smoke", ["threads=0", "audit.learnt=-1", "extra=1"])
    assert all(name in str(error.value) for name in ("threads", "audit: learnt", "extra"))
    assert "preset 'smoke' and --set" in str(error.value)


@pytest.mark.parametrize(
    "write",
    [
        lambda text: text.encode(),
        lambda text: codecs.BOM_UTF8 + text.encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode(),
    ],
)
def test_a_toml_file_of_any_editor(
    write: Callable[[str], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/me")
    text = (
        "# naïve\nmodel = '~/model'\nout = 'runs/a b'\nsimplify = 'svd(rank=1)@0.*.key'\n"
        "[data]\niid = 'a=b.jsonl'\n'ood:far' = '~/x y/c.csv'\n'ood:deep' = '~nobody-here'\n"
    )
    (tmp_path / "audit.toml").write_bytes(write(text))
    options, out = read_audit(tmp_path / "audit.toml", {})
    assert isinstance(options, GivenSpec) and options.model == "/me/model"
    assert out == f"{tmp_path}/runs/a b"
    assert options.simplify == ("svd(rank=1)@0.*.key",)
    assert options.data == [
        f"iid={tmp_path}/a=b.jsonl",
        "ood:far=/me/x y/c.csv",
        f"ood:deep={tmp_path}/~nobody-here",
    ]


def test_a_toml_file_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "audit.toml").write_bytes("model = 'x'\n".encode("utf-16"))
    with pytest.raises(AnamorphError, match=r"Cannot read .*audit\.toml"):
        read_audit(tmp_path / "audit.toml", {})


def test_a_study_without_simplifications_is_refused_before_its_task_is_made() -> None:
    said = load_preset("dyck", "smoke").model_dump()
    nothing = {"simplify": (), "each_layer": (), "each_head": ()}
    with pytest.raises(AnamorphError, match="there is no simplification; simplify, each_layer or"):
        StudySpec.of({**said, **nothing}, "here")
