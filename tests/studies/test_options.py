"""The options of an audit: the same in memory, into a run folder, and in a study."""

import inspect
import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anamorph as am
from anamorph.auditing.options import AuditOptions
from anamorph.errors import AnamorphError
from anamorph.progress import Event
from anamorph.tasks import Task
from plain import small_model
from random_tasks import random_task

pytestmark = pytest.mark.usefixtures("quick_report")

SPECS = ["svd(rank=[1,3])@1.*.{query,key}", "onehot@*.*.pattern"]


def test_both_functions_take_every_option_with_the_same_default() -> None:
    audit, given = (inspect.signature(f).parameters for f in (am.audit, am.audit_given))
    options = AuditOptions()
    for field in fields(AuditOptions):
        assert audit[field.name] == given[field.name]
        expected = None if field.name == "thresholds" else getattr(options, field.name)
        assert audit[field.name].default == expected
    assert {*audit} - {*given} == {"resamples"}
    assert {*given} - {*audit} == {"out", "name", "source", "figures", "engine"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"by": "head", "fit_sequences": 30, "learnt": 0.0, "batch_tokens": 300},
        {"by": "layer", "until": 0.3, "correlation": 0.1},
        {"sequences": np.int64(20), "thresholds": am.Thresholds(faithful=0.5, tolerance=0.2)},
    ],
)
def test_options_mean_the_same_in_both(options: dict[str, Any], task: Task, tmp_path: Path) -> None:
    """But for what the noise floor of a run folder has to say of gaps."""
    model = small_model(task)
    events: list[Event] = []
    found = am.audit(model, task, SPECS, watch=events.append, **options)
    run = am.audit_given(model, task, SPECS, tmp_path / "run", **options)
    assert found.results.filter(seed=0).equals(run.results.filter(seed=0))
    columns = ["simplification", "split", "metric", "gap", "verdict"]
    own, kept = (gaps.filter(seed=0).select(columns) for gaps in (found.gaps, run.gaps))
    assert own.equals(kept)
    assert events[-1].done == events[-1].total > 0
    names = set(found.results["simplification"])
    assert ("svd(rank=3)@1.0.{query,key}" in names) == (options.get("by") == "head")
    if "until" in options:
        assert "sequence" in set(found.results["interval"])


def test_a_study_takes_them_too(tmp_path: Path) -> None:
    settings = ["audit.until=0.3", "audit.by=layer", "audit.batch_tokens=500"]
    spec = am.load_preset("dyck", "smoke", settings)
    assert spec.audit == AuditOptions(
        sequences=spec.audit.sequences, fit_sequences=200, until=0.3, by="layer", batch_tokens=500
    )


# Runs of earlier versions


def older(run: Path) -> None:
    """As the run of an earlier version said what it was."""
    spec = json.loads((run / "spec.json").read_text())
    for key in ("layout", "about", "choices"):
        del spec[key]
    spec.pop("paper_steps", None)  # only a study that trains has it
    prints = spec["fingerprints"]  # of simplifications, which it took in another way
    prints["simplifications"] = dict.fromkeys(prints["simplifications"], "0" * 32)
    for key in ("models", "metrics"):
        del prints[key]
    (run / "spec.json").write_text(json.dumps(spec))


def test_a_complete_run_of_an_earlier_layout(task: Task, tmp_path: Path) -> None:
    model = small_model(task)
    run = am.audit_given(model, task, SPECS, tmp_path / "run", sequences=10)
    older(run.path)
    before = {f: f.read_bytes() for f in run.path.rglob("*") if f.is_file()}
    again = am.audit_given(model, task, SPECS, tmp_path / "run", sequences=10)
    assert again.complete and again.results.equals(run.results)
    assert {f: f.read_bytes() for f in run.path.rglob("*") if f.is_file()} == before


def test_a_run_of_an_earlier_layout_cannot_tell_what_others_simplify_by(
    task: Task, tmp_path: Path
) -> None:
    model = small_model(task)
    run = am.audit_given(model, task, SPECS, tmp_path / "run", sequences=10)
    older(run.path)
    spec = json.loads((run.path / "spec.json").read_text())
    spec["fingerprints"]["simplifications"]["mine(path=a/b)"] = "0" * 32
    (run.path / "spec.json").write_text(json.dumps(spec))
    with pytest.warns(UserWarning, match=r"what mine\(path=a/b\) read or hold.* cannot be told"):
        am.audit_given(model, task, SPECS, tmp_path / "run", sequences=10)


def test_an_unfinished_run_of_an_earlier_layout(task: Task, tmp_path: Path) -> None:
    model = small_model(task)
    run = am.audit_given(model, task, SPECS, tmp_path / "run", sequences=10)
    older(run.path)
    run.report.unlink()
    with pytest.raises(am.AnamorphError, match=r"earlier version.*Delete .*works.*goes on from"):
        am.audit_given(model, task, SPECS, tmp_path / "run", sequences=10)
    (run.path / "seed-0" / "simplifications.safetensors").unlink()
    for file in (run.path / "seed-0" / "works").iterdir():
        file.unlink()
    (run.path / "seed-0" / "works").rmdir()
    again = am.audit_given(model, task, SPECS, tmp_path / "run", sequences=10)
    assert again.complete and again.results.equals(run.results) and again.spec == run.spec


def test_what_a_study_of_an_earlier_version_did_not_say(smoke_run: Path, tmp_path: Path) -> None:
    """Only the options that a study has been given since are asked to be as they always were."""
    out = tmp_path / "run"
    out.mkdir()
    for file in smoke_run.rglob("*"):
        if file.is_file() and "figures" not in file.parts:
            (out / file.relative_to(smoke_run)).parent.mkdir(parents=True, exist_ok=True)
            (out / file.relative_to(smoke_run)).write_bytes(file.read_bytes())
    spec = json.loads((out / "spec.json").read_text())
    kept = ("sequences", "fit_sequences", "learnt", "thresholds")
    spec["audit"] = {name: spec["audit"][name] for name in kept}
    (out / "spec.json").write_text(json.dumps(spec))
    older(out)
    assert am.run_study(am.load_preset("dyck", "smoke"), out, preset="smoke").complete
    with pytest.raises(am.AnamorphError, match=r"audit\.until: there None, asked 0\.1"):
        am.run_study(am.load_preset("dyck", "smoke", ["audit.until=0.1"]), out, preset="smoke")
    # Where it goes on, it says what its version did not: reports tell it.
    (out / "report.html").unlink()
    (out / "seed-0" / "simplifications.safetensors").unlink()
    shutil.rmtree(out / "seed-0" / "works")
    again = am.run_study(am.load_preset("dyck", "smoke"), out, preset="smoke")
    usual = json.loads((smoke_run / "spec.json").read_text())
    for key in ("paper_steps", "about", "choices", "layout", "fingerprints"):
        assert again.spec[key] == usual[key]
    assert again.results.equals(am.load_run(smoke_run).results)


@pytest.mark.parametrize("call", ["audit", "audit_given"])
def test_what_is_no_model_or_no_task_is_told(call: str, tmp_path: Path) -> None:
    run = {
        "audit": lambda model, task: am.audit(model, task, "svd(rank=1)@*.residual"),
        "audit_given": lambda model, task: am.audit_given(
            model, task, "svd(rank=1)@*.residual", tmp_path / "run"
        ),
    }[call]
    task = random_task(7)
    with pytest.raises(AnamorphError, match=r"got Linear\. Wrap .* am\.HookedModel\(module"):
        run(torch.nn.Linear(2, 2), task)
    with pytest.raises(AnamorphError, match=r"must be an anamorph\.tasks\.Task; got str"):
        run(small_model(task), "dyck")
    assert not (tmp_path / "run").exists()
