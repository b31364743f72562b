"""Views from disk on the command line: a model folder, coders beside it, and a run that goes on."""

import json
import random
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import transformers

from anamorph.simplifications import FittedProxies
from coders import cross_layer, sae, transcoder
from tiny_tokenizers import byte_level

pytestmark = pytest.mark.usefixtures("quick_report")

WORDS = ("the", "cat", "dog", "fox", "sat", "ran", "on", "in", "and", "over", "lazy", "mat")
SIMPLIFY = {
    "sae": "sae({}/sae)@1.residual",
    "keeps": "sae({}/sae/sae_weights.safetensors, keep=1)@1.residual",
    "error": "transcoder({}/transcoder, error=true)@1.mlp",
    "clt": "clt({}/clt)@*.mlp",
    "frozen": "clt({}/clt)@*.mlp;frozen@*.*.pattern",
    "svd": "svd(rank=2)@1.*.{{query,key}}",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with its tokenizer, documents of two kinds, and coders."""
    tokenizer = byte_level()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rng = random.Random(0)
    for name, words in (("a", WORDS), ("b", WORDS[:5])):
        texts = [" ".join(rng.choices(words, k=rng.randint(4, 14))) for _ in range(60)]
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    sae(tmp_path / "sae", 1, 32)
    transcoder(tmp_path / "transcoder", 1, 32)
    cross_layer(tmp_path / "clt", 3, 32)
    return tmp_path


@pytest.fixture
def audit(folder: Path, anamorph: Any) -> Any:
    """Runs `anamorph audit` of the model with some specs into a folder."""

    def run(out: Path, *specs: str) -> Any:
        simplify = [word for spec in specs for word in ("--simplify", spec)]
        data = ("--data", f"iid={folder}/a.jsonl", "--data", f"ood:b={folder}/b.jsonl")
        more = ("--fit-on", "iid", "--fit-sequences", 10, "--sequences", 40, "--length", 16)
        given = ("--model", folder / "model", *data, *more, "--by", "all", "--out", out)
        return anamorph("audit", *given, *simplify)

    return run


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def said(done: Any) -> str:
    return " ".join((done.out + done.error).split())


def test_a_run_goes_on_with_the_same_files_only(folder: Path, audit: Any) -> None:
    specs = [spec.format(folder) for spec in SIMPLIFY.values()]
    out = folder / "run"
    done = audit(out, *specs)
    assert done.code == 0, said(done)
    results = pl.read_parquet(out / "results.parquet")
    same = results.filter(metric="same_prediction").filter(
        pl.col("facet").is_null() & pl.col("seed").is_null()
    )
    value = {
        (method, "keep" in name, split): value
        for name, method, split, value in same.select(
            "simplification", "method", "split", "value"
        ).iter_rows()
    }
    for split in ("iid", "b"):
        assert value["transcoder", False, split] == 1
        assert value["sae", False, split] < value["sae", True, split] < 1
        assert value["clt", False, split] < 1 and value["clt; frozen", False, split] < 1

    kept = FittedProxies.load(out / "seed-0" / "simplifications.safetensors")
    assert len(kept) == 7 and "sae_weights" in str(list(kept))
    size = (out / "seed-0" / "simplifications.safetensors").stat().st_size
    assert size < 12_000 < (folder / "clt" / "W_dec_0.safetensors").stat().st_size / 0.6

    before = contents(out)
    for name in ("results.parquet", "gaps.parquet", "report.html", "seed-0/works/b-0000.parquet"):
        (out / name).unlink()
    assert audit(out, *specs).code == 0
    assert contents(out) == before

    (out / "report.html").unlink()
    for file, change, names in (
        (folder / "sae" / "cfg.json", ('"k": 4', '"k": 3'), ("sae(path=", "sae_weights")),
        (folder / "clt" / "config.yaml", ("tiny", "tinier"), ("clt(path=",)),
    ):
        text = file.read_text()
        file.write_text(text.replace(*change))
        done = audit(out, *specs)
        assert done.code == 3
        assert "holds a run of another specification (what" in said(done)
        assert all(name in said(done) for name in names)
        assert len(re.findall("reads or holds", said(done))) == len(names)
        file.write_text(text)
    assert audit(out, *specs).code == 0
    assert contents(out) == before


def test_what_does_not_suit_is_refused_before_a_run_begins(folder: Path, audit: Any) -> None:
    sae(folder / "wide", 1, 48)
    cross_layer(folder / "deep", 4, 32)
    (folder / "empty").mkdir()
    file = folder / "transcoder" / "sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:900])
    for spec, message in (
        ("sae({}/wide)@1.residual", "of width 48, and 1.residual has width 32"),
        ("sae({}/sae)@2.residual", "was made for 1.residual of tiny"),
        ("clt({}/deep)@*.mlp", "has 4 layers, and the model 3"),
        ("sae({}/empty)@1.residual", "of no format that is known; known are, SAELens"),
        ("sae({}/nowhere)@1.residual", "There is no folder"),
        ("transcoder({}/transcoder)@1.mlp", "the file is damaged"),
        ("transcoder({}/sae)@1.mlp", "it is an autoencoder"),
    ):
        done = audit(folder / "run", spec.format(folder))
        assert done.code == 2 and message in said(done), said(done)
        assert "Traceback" not in said(done)
        assert not (folder / "run").exists()
