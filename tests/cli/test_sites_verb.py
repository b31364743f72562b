"""`anamorph sites`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import anamorph as am
from huggingface_models import make


@pytest.fixture
def sites(anamorph: Any) -> Any:
    def run(*arguments: object) -> tuple[int, str]:
        done = anamorph("sites", *arguments)
        return done.code, done.out + done.error

    return run


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_a_model_folder_without_a_tokenizer(sites: Any, tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path / "model")  # type: ignore[operator]
    code, text = sites(tmp_path / "model")
    assert code == 0, text
    assert "73 sites of model" in text
    assert rows(text)[:2] == [
        ["0-2.0-3.query", "[position, 8]", "once"],
        ["0-2.0-1.key", "[position, 8]", "once"],
    ]
    assert len(rows(text)) == 14
    code, text = sites(tmp_path / "model", "--all")
    assert len(rows(text)) == 73
    assert ["2.3.pattern", "[query, key]", "once"] in rows(text)


def test_a_model_outside_the_interface(sites: Any, tmp_path: Path) -> None:
    make("gpt_neo").save_pretrained(tmp_path / "model")  # type: ignore[operator]
    code, text = sites(tmp_path / "model")
    assert code == 0, text
    assert rows(text) == [
        ["0-1.residual", "[position, 32]", "once"],
        ["0-1.mlp", "[position, 32]", "once"],
        ["0-1.attention", "[position, 32]", "once"],
        ["0-1.middle", "[position, 32]", "once"],
        ["0-1.mlp_input", "[position, 32]", "once"],
        ["0-1.norm_1", "[position, 1]", "once"],
        ["0-1.norm_2", "[position, 1]", "once"],
        ["1.norm_final", "[position, 1]", "once"],
    ]
    assert "No query, key, value, pattern, output and heads in layers 0-1" in text
    assert "am.HookedModel" in text


def write_spec(folder: Path, **given: Any) -> None:
    spec = {key: {} for key in ("study", "task", "simplify", "audit", "threads")}
    (folder / "spec.json").write_text(json.dumps({**spec, "model": {"name": "mine"}, **given}))


def test_a_run_of_ours(sites: Any, tmp_path: Path) -> None:
    write_spec(tmp_path, training={}, seeds=[3])
    (tmp_path / "seed-3").mkdir()
    torch.manual_seed(0)
    config = am.DecoderConfig(vocabulary=9, context=5, heads=2, width=8)
    am.Decoder(config).save(tmp_path / "seed-3/model.safetensors")
    code, text = sites(tmp_path)
    assert code == 0, text
    assert ["0-1.0-1.query", "[position, 4]", "once"] in rows(text)
    assert ["0-1.mlp", "[position, 8]", "once"] in rows(text)


def test_a_run_without_its_model(sites: Any, tmp_path: Path) -> None:
    write_spec(tmp_path, training=None, seeds=[0])
    code, text = sites(tmp_path)
    assert code == 2
    assert "audits a model that was given (mine)" in " ".join(text.split())


def test_nothing_there(sites: Any, tmp_path: Path) -> None:
    code, text = sites(tmp_path / "none")
    assert code == 2
    assert "There is no model folder or GGUF file" in text
    code, text = sites(tmp_path)
    assert code == 2
    assert "Cannot load a causal or masked language" in text
