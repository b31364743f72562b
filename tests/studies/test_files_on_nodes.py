"""A model that was read from files is read again by the machines that work on it."""

import json
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import torch
import transformers

from anamorph.auditing.local import Lasting, Local, Shared
from anamorph.auditing.ray import RayEngine
from anamorph.errors import AnamorphError
from anamorph.progress import ignore
from anamorph.studies import bench
from anamorph.studies.sources import GivenStudy
from anamorph.studies.specification import GivenSpec
from anamorph.studies.study import audit_files, carry_out
from far_jobs import PATH
from folders import contents
from tiny_tokenizers import byte_level

_T = TypeVar("_T")


def write_model(folder: Path, seed: int) -> None:
    tokenizer = byte_level()
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def spec(tmp_path: Path) -> GivenSpec:
    write_model(tmp_path / "model", 0)
    for name in ("iid", "train", "far"):
        lines = [json.dumps({"text": f"{name} {n} a cat sat on a mat"}) for n in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    roles = {"iid": "iid", "train": "train", "ood:far": "far"}
    return GivenSpec(
        model=str(tmp_path / "model"),
        data=[f"{role}={tmp_path / name}.jsonl" for role, name in roles.items()],
        simplify=["svd(rank=2)@1.*.{query,key}"],
        length=12,
    )


@pytest.mark.slow
def test_a_cluster_reads_it_and_says_if_it_is_another(
    spec: GivenSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", PATH)
    audit_files(spec, tmp_path / "one", figures=[])
    with RayEngine(workers=2) as engine:
        audit_files(spec, tmp_path / "two", figures=[], engine=engine)
        assert contents(tmp_path / "two") == contents(tmp_path / "one")
        study = GivenStudy.load(spec)
        write_model(Path(spec.model), 1)  # as if a node had another under that name
        there = study.weights
        here = GivenStudy.load(spec).weights
        part = next(part for part in there if there[part] != here[part])
        with pytest.raises(AnamorphError) as error:
            carry_out(study, tmp_path / "three", watch=ignore, figures=[], engine=engine)
        assert f"of {part} is {here[part]}, and there {there[part]}" in str(error.value)
        assert str(error.value).startswith("On the node ")
    assert not list((tmp_path / "three").glob("seed-0/works/*"))


def test_what_a_machine_does_not_have_travels(spec: GivenSpec, tmp_path: Path) -> None:
    loads: list[bool] = []

    class Elsewhere(Local):
        def share_made(self, make: "partial[_T | None]", value: _T) -> Shared[_T]:
            source, weights = make.args
            loads.append(bench.load_model(source, weights) is not None)
            missing = bench.load_model({**source, "model": str(tmp_path / "nowhere")}, weights)
            loads.append(missing is not None)
            return self.share(value)

    audit_files(spec, tmp_path / "one", figures=[])
    audit_files(spec, tmp_path / "two", figures=[], engine=Elsewhere())
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert loads == [True, False]
    with pytest.raises(Lasting, match="Put the same files on all nodes"):
        bench.load_model({"model": spec.model, "hub": False, "dtype": "float32"}, (("a", "b"),))
