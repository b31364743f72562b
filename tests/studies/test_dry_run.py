"""What a dry run tells is what the run then has; and it writes nothing."""

import json
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import anamorph as am
from anamorph.auditing.options import AuditOptions
from anamorph.models.decoder import Decoder
from anamorph.studies import dry_run
from anamorph.studies.dry_run import Estimate, Took, estimate
from anamorph.studies.planned import Workload
from anamorph.studies.sources import GivenStudy, TrainedStudy
from anamorph.studies.specification import load_preset
from anamorph.studies.study import carry_out
from anamorph.tasks import Task

SETTINGS = ["training.steps=200", "task.train=300", "task.test=60", "audit.sequences=40"]
SMALL = ["run", "dyck", "--preset", "smoke", *(w for s in SETTINGS for w in ("--set", s))]


def everything(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.usefixtures("quick_report")
def test_it_counts_what_the_run_then_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anamorph.auditing.works.PROXIES", 3)  # several works a split
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run, "monotonic", time.process_time)  # whatever else is running here
    study = TrainedStudy(load_preset("dyck", "smoke", SETTINGS, seeds=2))
    found = estimate(study, workers=1)
    assert everything(tmp_path) == []
    begun = time.process_time()
    run = carry_out(study, tmp_path / "run", workers=1)
    took = time.process_time() - begun
    assert found.works == len(run.works()) == 2 * 3 * 6
    cells = run.results.select("seed", "simplification", "split").drop_nulls().unique()
    assert found.cells == len(cells) == 2 * 8 * 6
    assert found.seeds == 2 and found.methods == {"identity": 1, "svd": 4, "kmeans": 2, "onehot": 1}
    model = Decoder.load(run.model(0))
    assert found.parameters == sum(p.numel() for p in model.parameters())
    whole = run.results.filter(pl.col("facet").is_null(), metric="model_accuracy", seed=0)
    for split in found.splits[1:]:
        rows = whole.filter(split=split.name)
        assert {(split.sequences, split.scored)} == {*rows.select("sequences", "tokens").rows()}
    of_models = found.seconds - dry_run.PAGE_SECONDS
    assert took / 3 < of_models < 3 * took
    kept = [*run.works(), *run.path.glob("seed-*/*.safetensors")]
    files = sum(file.stat().st_size for file in kept)
    assert files / 2 < found.disk - dry_run.PAGE_BYTES < 2 * files


def test_a_line_through_the_last_two_tries_is_extended() -> None:
    assert dry_run._extended([(16, 9.0), (48, 2.0), (144, 5.0)], 240) == pytest.approx(8.0)
    assert dry_run._extended([(10, 1.0)], 40) == pytest.approx(4.0)
    assert dry_run._extended([(10, 1.0), (40, 1.5)], 40) == 1.5
    assert dry_run._extended([(10, 2.0), (20, 1.0)], 40) == 1.0  # never less


def test_models_side_by_side_share_the_time() -> None:
    took = (Took("training", 60.0, ""), Took("works", 30.0, ""), Took("report", 5.0, ""))
    rest: dict[str, Any] = {"splits": (), "methods": {}, "works": 0, "cells": 0, "parameters": None}
    rest |= {"memory": None, "device_memory": None, "disk": 0, "early": False}
    rest |= {"load": Workload((), 1, 0, 0, 0), "flops": None}
    for workers, seconds in {1: 95.0, 2: 65.0, 3: 35.0}.items():
        assert Estimate(seeds=3, took=took, workers=workers, **rest).seconds == seconds


def test_on_workers_models_go_side_by_side_and_works_are_shared() -> None:
    took = (Took("training", 60.0, ""), Took("fitting", 30.0, ""), Took("works", 80.0, ""))
    took += (Took("report", 5.0, ""),)
    rest: dict[str, Any] = {"splits": (), "methods": {}, "cells": 0, "parameters": None}
    rest |= {"memory": None, "device_memory": None, "disk": 0, "early": False, "flops": None}
    load = Workload((20.0,) * 2, 1, 0, 0, 0)
    found = Estimate(seeds=2, works=4, workers=1, took=took, load=load, **rest)
    there = found.on(2)
    # A model a worker: 30 + 15 s; then 15 s of start, four works of 20 s on two workers, 5 s.
    assert there.seconds == pytest.approx(45 + 15 + 40 + 5, abs=0.1)
    assert there.one == 60 + 30 + 80 + 5
    assert there.limit == "works: workers" and found.on(1).seconds > 175
    many = found.on(4)
    assert many.seconds == pytest.approx(45 + 15 + 20 + 5, abs=0.1)
    assert many.efficiency == pytest.approx(175 / many.seconds / 4)


def test_it_is_told_as_json_and_on_workers(
    anamorph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = anamorph(*SMALL, "--dry-run", "--on", "4", "--json")
    told = json.loads(done.out)
    assert told["works"] == 6 and told["on"]["workers"] == 4 and everything(tmp_path) == []
    assert told["on"]["efficiency"] == pytest.approx(told["on"]["speed_up"] / 4)
    # 2 layers of 4·16·16 + 2·16·64 weights and 16·10 of the logits, 200 steps of 1,024 tokens, each
    # 2 operations forward and twice that backward; attention comes on top.
    matrices = 3 * 2 * (2 * 3072 + 160) * 200 * 1024
    assert 1.0 < told["flops"]["training"] / matrices < 2.0
    refused = anamorph(*SMALL, "--on", "4")
    assert refused.code == 2 and "give --dry-run too" in refused.error


@pytest.mark.usefixtures("quick_report")
def test_the_command_line_prints_it_and_writes_nothing(
    anamorph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = anamorph(*SMALL, "--dry-run", "--simplify", "svd(rank=[1,2])@1.*.key")
    assert done.code == 0, done.error
    assert "3 proxies (1 identity, 2 svd)" in done.out and "6 works with 18 cells" in done.out
    assert "Nothing was written." in done.out and everything(tmp_path) == []
    assert anamorph(*SMALL, "--out", "run").code == 0
    before = everything(tmp_path)
    again = anamorph("audit", "run", "--simplify", "pca(rank=1)@1.*.key", "--dry-run")
    assert again.code == 0, again.error
    assert "training" not in again.out and "6 works with 12 cells" in again.out
    wrong = anamorph("audit", "run", "--simplify", "pca(rank=99)@1.*.key", "--dry-run")
    assert wrong.code == 2 and "rank above dimension" in wrong.error
    assert everything(tmp_path) == before


def test_a_given_model_is_timed_as_it_is(task: Task) -> None:
    config = am.DecoderConfig(len(task.vocabulary), 64, width=16, heads=2, mlp=16)
    model = am.Decoder(config).eval()
    options = AuditOptions(sequences=20, fit_sequences=50, until=0.2)
    found = estimate(GivenStudy(model, task, ["svd(rank=[1,2])@1.*.key"], options))
    assert [part.part for part in found.took] == ["fitting", "works", "tables, claims, report"]
    assert found.early and found.splits[0].sequences == 50
    assert found.cells == 3 * len(task.evaluated)
