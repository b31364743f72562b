"""`anamorph data code` and `anamorph run code` on folders of source code."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import anamorph as am
from sources import write_sources


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setenv("ANAMORPH_CACHE", str(tmp_path / "cache"))
    corpus = write_sources(tmp_path / "sources", functions=80)
    given = ["--train", corpus["train"], "--unseen", corpus["unseen"]]
    return [*given, "--ood", f"python={corpus['python']}", "--set", "task.language=c"]


def test_a_study_of_single_heads(anamorph: Any, folders: list[Any], tmp_path: Path) -> None:
    small = ["training.steps=4", "training.evaluate_every=4", "audit.sequences=20", "simplify=[]"]
    small += ["each_layer=[]", "each_head=['svd(rank=[1,4])@*.*.{query,key}']"]
    settings = [x for text in small for x in ("--set", text)]
    given = ("run", "code", "--preset", "smoke", *folders, *settings, "--out", tmp_path / "run")
    done = anamorph(*given)
    assert done.code == 0, done.error
    run = am.load_run(tmp_path / "run")
    names = set(run.results["simplification"])
    assert {
        f"svd(rank=4)@{layer}.{head}.{{query,key}}" for layer in (0, 1) for head in range(3)
    } <= names
    assert len(names) == 13
    assert set(run.gaps["split"]) == {"unseen_repository", "python"}
    status = {claim["id"]: claim["status"] for claim in run.claims}
    assert status["C9"] != "not tested here"
    kinds = run.results.filter(pl.col("facet") == "token kind")["level"]
    assert {"keyword", "identifier", "indentation"} <= set(kinds)
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert 'id="text-view-data"' in page and 'data-spec="spec-gap_by_kind"' in page
    again = anamorph(*given)
    assert "complete already" in again.out


def test_data_prints_what_splits_were_made_from(
    anamorph: Any, folders: list[Any], tmp_path: Path
) -> None:
    done = anamorph("data", "code", "--preset", "smoke", *folders, "--out", tmp_path / "data")
    assert done.code == 0, done.error
    assert "repositories" in done.out and "exact duplicates left out" in " ".join(done.out.split())
    assert "functions: done" in done.out
    spec = json.loads((tmp_path / "data" / "task.json").read_text("utf-8"))
    assert spec["task"]["splits"]["iid"]["repositories"] == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--ood", "python=x"), "give --train"),
        (("--train", ".", "--ood", "python"), "LANGUAGE=FOLDER"),
        (("--train", ".", "--ood", "c=x", "--ood", "c=y"), "--ood has c twice"),
        (("--train", ".", "--set", "task.corpus=demo"), "not both"),
        (("--train", "nowhere"), "nowhere with source code in python"),
        (("--set", "task.corpus=nowhere"), "no recipe 'nowhere'; there are: demo, paper"),
    ],
)
def test_bad_folders(anamorph: Any, tmp_path: Path, given: tuple[str, ...], message: str) -> None:
    done = anamorph("data", "code", "--preset", "smoke", *given, "--out", tmp_path / "data")
    assert done.code == 2
    assert message in " ".join(done.error.split())
    assert not (tmp_path / "data").exists()
