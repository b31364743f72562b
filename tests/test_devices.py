"""On a machine with an accelerator: one stated device, the CPU unless told otherwise."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from torch import nn

import anamorph as am
from anamorph.analysis.head_scores import head_scores
from anamorph.auditing.noise import noise_floor
from anamorph.models.base import Model
from anamorph.simplifications import KMeans
from anamorph.studies.study import audit_given, audit_study
from anamorph.tasks import Split, Task
from huggingface_models import make
from plain import small_model
from pretended import APPLE, DEVICE, MEMORY, NAME, Pretended, on_accelerator

pytestmark = pytest.mark.usefixtures("quick_report")


@pytest.fixture(scope="module")
def short() -> Task:
    """Random tokens, in sequences that every model here takes."""
    rng = np.random.default_rng(0)
    splits = {}
    for name, role in (("train", "train"), ("iid", "iid"), ("far", "ood")):
        offsets = np.concatenate([[0], np.cumsum(rng.integers(3, 15, 40))])
        scored = np.ones(offsets[-1], bool)
        scored[offsets[:-1]] = False
        tokens = rng.integers(0, 8, offsets[-1]).astype(np.int16)
        splits[name] = Split(name, role, tokens, offsets, scored)  # type: ignore[arg-type]
    return Task("random", {"name": "random"}, tuple("abcdefgh"), np.arange(8), splits)


def moved(module: nn.Module, device: torch.device) -> nn.Module:
    """As `Module.to`, which looks for a device that is there in truth."""
    return on_accelerator(module) if device == DEVICE else module


def decoder(task: Task) -> tuple[nn.Module, Callable[[nn.Module], Model]]:
    return small_model(task), lambda module: module  # type: ignore[return-value]


def hugging_face(task: Task) -> tuple[nn.Module, Callable[[nn.Module], Model]]:
    return make("llama"), am.HuggingFace


def hooked(task: Task) -> tuple[nn.Module, Callable[[nn.Module], Model]]:
    torch.manual_seed(0)
    layers = (nn.Embedding(8, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 8))
    sites = {"0.residual": "1", "1.residual": "3"}
    return nn.Sequential(*layers).eval(), lambda module: am.HookedModel(module, sites)


SPECS = {
    decoder: [
        "svd(rank=2)@1.*.key",
        "kmeans(clusters=3)@0.1.{query,key}",
        "onehot@1.*.pattern",
        "svd(rank=2)+kmeans(clusters=4)@0.mlp",
    ],
    hugging_face: ["svd(rank=2)@1.0.{query,key}", "pca(rank=3)@0.mlp", "onehot@1.1.pattern"],
    hooked: ["svd(rank=2)@1.residual", "kmeans(clusters=3)@0.residual"],
}


@pytest.mark.parametrize("kind", list(SPECS), ids=lambda kind: kind.__name__)
def test_where_there_is_no_float64_sums_are_made_on_the_host(
    kind: Any, short: Task, tmp_path: Path
) -> None:
    """On Apple's GPUs: sums, moments, explained variance, scores of heads, rounding."""
    module, wrap = kind(short)
    options: dict[str, Any] = {"by": "all", "sequences": 20, "fit_sequences": 20}
    specs = SPECS[kind][:1]
    usual = audit_given(wrap(copy.deepcopy(module)), short, specs, tmp_path / "cpu", **options)
    with Pretended():
        model = wrap(on_accelerator(module, device=APPLE))
        away = audit_given(model, short, specs, tmp_path / "away", **options)
        head_scores(model, short.reference)
    assert away.spec["device"] == away.spec["accelerator"] == "mps"
    assert_frame_equal(away.results, usual.results, rel_tol=0, abs_tol=1e-6)


@pytest.mark.parametrize("kind", list(SPECS), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("until", [None, 0.3])
def test_a_model_elsewhere_has_its_batches_there(
    kind: Any, until: float | None, short: Task, tmp_path: Path
) -> None:
    """And its numbers are those of the CPU, as they are computed there in truth."""
    module, wrap = kind(short)
    options: dict[str, Any] = {"by": "all", "sequences": 20, "fit_sequences": 20}
    options["until"] = until
    usual_model = wrap(copy.deepcopy(module))
    usual = audit_given(usual_model, short, SPECS[kind], tmp_path / "cpu", **options)
    with Pretended():
        model = wrap(on_accelerator(module))
        assert model.device == DEVICE
        away = audit_given(model, short, SPECS[kind], tmp_path / "away", **options)
        model.parallel = False  # another thread knows nothing of the pretended device
        am.check_model(
            model, torch.from_numpy(short.train.tokens[:12].astype(np.int64)).view(2, 6).to(DEVICE)
        )
        assert len(am.list_sites(model)) == len(model.sites)
    assert_frame_equal(away.results, usual.results, rel_tol=0, abs_tol=1e-6)
    specs = [json.loads((run.path / "spec.json").read_text()) for run in (usual, away)]
    assert [spec["device"] for spec in specs] == ["cpu", "cuda"]
    assert [spec["accelerator"] for spec in specs] == [None, NAME]
    sizes = [(spec["audit"]["batch_tokens"], spec["audit"]["stack_memory"]) for spec in specs]
    assert sizes == [(usual_model.batch_tokens, 8 * 2**20), (2**16, MEMORY // 64)]
    assert specs[0]["fingerprints"] == specs[1]["fingerprints"]  # weights are the same anywhere


def test_a_run_of_one_device_is_not_gone_on_with_on_another(task: Task, tmp_path: Path) -> None:
    options: dict[str, Any] = {"by": "all", "sequences": 10, "fit_sequences": 20}
    audit_given(small_model(task), task, SPECS[decoder], tmp_path / "run", **options)
    with Pretended(), pytest.raises(am.AnamorphError, match="device: there cpu, asked cuda"):
        model: Any = on_accelerator(small_model(task))
        audit_given(model, task, SPECS[decoder], tmp_path / "run", **options)


def test_another_precision_of_products_is_refused(task: Task, tmp_path: Path) -> None:
    options: dict[str, Any] = {"by": "all", "sequences": 10, "fit_sequences": 20}
    audit_given(small_model(task), task, SPECS[decoder], tmp_path / "run", **options)
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(am.AnamorphError, match="matmul_precision: there highest, asked medium"):
            audit_given(small_model(task), task, SPECS[decoder], tmp_path / "run", **options)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_training_stays_on_the_cpu_of_a_machine_with_an_accelerator(
    monkeypatch: pytest.MonkeyPatch, task: Task, tmp_path: Path
) -> None:
    """If it is asked to: train, then audit."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    config = am.TrainingConfig(steps=2, batch_tokens=256)
    model, _ = am.train(task, config=config, out=tmp_path / "model", device="cpu")
    assert model.device == torch.device("cpu")
    found = am.audit(model, task, ["svd(rank=2)@1.*.key"], sequences=5, fit_sequences=5)
    assert len(found.results)
    assert noise_floor(model, task) is not None
    assert head_scores(model, task.reference).height


def test_the_pretended_accelerator_refuses_company_from_the_cpu() -> None:
    """As a real one does; else the tests above could not fail."""
    with Pretended():
        away = torch.ones(3, 4).to(DEVICE)
        assert (
            away.device == (away @ away.T).device == torch.zeros(2, device=DEVICE).device == DEVICE
        )
        for wrong in (
            lambda: away + torch.ones(4),
            lambda: torch.cat([away, torch.ones(1, 4)]),
            lambda: torch.ones(3)[torch.arange(2).to(DEVICE)],
            lambda: nn.functional.embedding(torch.arange(2), away),
            lambda: away.index_add_(0, torch.arange(3), torch.ones(3, 4)),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        with pytest.raises(TypeError, match="numpy"):
            away.numpy()
        assert away.cpu().numpy().sum() == 12
        assert KMeans(clusters=2).fit(torch.eye(3)).centers_.device == torch.device("cpu")


def test_the_models_of_a_run_are_audited_elsewhere(
    smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fits, sums, noise floor, scores of heads and what is drawn follow the device."""
    specs = ["svd(rank=2, joint=true)@1.*.{query,key}", "kmeans(clusters=4)@0.0.key"]
    usual = audit_study(smoke_run, specs, tmp_path / "cpu", device="cpu")
    with Pretended():
        monkeypatch.setattr(am.Decoder, "to", moved)
        away = audit_study(smoke_run, specs, tmp_path / "away", device="cuda")
    assert [(run.spec["device"], run.spec["accelerator"]) for run in (usual, away)] == [
        ("cpu", None),
        ("cuda", NAME),
    ]
    for name in ("results.parquet", "gaps.parquet", "seed-0/sites.parquet"):
        ours, theirs = (pl.read_parquet(run.path / name) for run in (usual, away))
        assert_frame_equal(theirs, ours, rel_tol=0, abs_tol=1e-5)
    for path in sorted((usual.seed(0) / "views").glob("*.parquet")):
        ours, theirs = pl.read_parquet(path), pl.read_parquet(away.seed(0) / "views" / path.name)
        assert_frame_equal(theirs, ours, rel_tol=0, abs_tol=1e-4)
