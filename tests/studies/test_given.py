"""A model and data that somebody has, from files to a run folder."""

import json
import random
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import transformers
from polars.testing import assert_frame_equal

from anamorph.auditing import works
from anamorph.auditing.audit import audit, fit_on_task
from anamorph.auditing.engine import LOOK, Settings, audit_split
from anamorph.auditing.proxies import SimplifiedProxy
from anamorph.cli import main
from anamorph.errors import AnamorphError
from anamorph.faithfulness.confidence import PRIOR_CORRELATION, RatioSums, sequence_interval
from anamorph.faithfulness.estimates import Stopping
from anamorph.models.decoder import Decoder, DecoderConfig
from anamorph.models.huggingface.load import load_pretrained
from anamorph.models.huggingface.model import HuggingFace
from anamorph.models.sites import Site
from anamorph.simplifications import parse, sweep
from anamorph.studies.specification import GivenSpec, read_audit
from anamorph.studies.study import audit_given
from anamorph.tasks import Split, Task
from anamorph.tasks.text.task import text_task
from huggingface_models import make
from tiny_tokenizers import byte_level

pytestmark = pytest.mark.usefixtures("quick_report")

SIMPLIFY = ["svd(rank=[1,2,8])@{0,2}.*.{query,key}"]
WORDS = "the a cat dog fox sat ran on in and over lazy quick brown mat log again"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer, and documents of three kinds."""
    path = tmp_path_factory.mktemp("given")
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
    model.save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")
    rng = random.Random(0)
    for name, words in (("a", WORDS), ("b", WORDS[:21]), ("c", WORDS[::-1])):
        with (path / f"{name}.jsonl").open("w") as file:
            for _ in range(120):
                text = " ".join(rng.choices(words.split(), k=rng.randint(4, 14)))
                file.write(json.dumps({"text": text}) + "\n")
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> HuggingFace:
    return load_pretrained(folder / "model")[0]


@pytest.fixture(scope="module")
def task(folder: Path) -> Task:
    data = [f"iid={folder}/a.jsonl", f"ood:b={folder}/b.jsonl", f"ood:c={folder}/c.jsonl"]
    return text_task(data, byte_level(), length=24, fit_on="iid", fit_sequences=30)


def test_one_proxy_a_head_with_the_keys_that_it_reads(model: HuggingFace) -> None:
    proxies = [str(p) for p in sweep(["svd(rank=2)@1.*.{query,key}"], model.sites)]
    assert proxies == [
        "svd(rank=2)@1.0.{query,key}",
        "svd(rank=2)@1.1.query;svd(rank=2)@1.0.key",
        "svd(rank=2)@1.2.query;svd(rank=2)@1.1.key",
        "svd(rank=2)@1.3.query;svd(rank=2)@1.1.key",
    ]
    sizes = {(p.method, p.size) for p in sweep(["svd(rank=2)@1.*.{query,key}"], model.sites)}
    assert sizes == {("svd", 2)}


def test_sweeps_by_layer_and_all(model: HuggingFace) -> None:
    spec = "kmeans(clusters=[2,4])@{0,2}.*.value;onehot@2.*.pattern"
    assert [str(p) for p in sweep([spec], model.sites, "layer")] == [
        "kmeans(clusters=2)@0.*.value",
        "kmeans(clusters=2)@2.*.value;onehot@2.*.pattern",
        "kmeans(clusters=4)@0.*.value",
        "kmeans(clusters=4)@2.*.value;onehot@2.*.pattern",
    ]
    assert len(sweep([spec], model.sites, "all")) == 2
    with pytest.raises(AnamorphError, match="expected all, layer or head"):
        sweep([spec], model.sites, "heads")  # type: ignore[arg-type]
    with pytest.raises(AnamorphError, match="all heads share"):
        sweep(["svd(rank=2)@1.mlp"], model.sites)
    with pytest.raises(AnamorphError, match=r"2 query heads share one key head.*joint"):
        sweep(["svd(rank=2, joint=true)@1.*.{query,key}"], model.sites)


def test_numbers_are_those_of_a_plain_loop(model: HuggingFace, task: Task, tmp_path: Path) -> None:
    """Agreement and accuracy of one head's proxy, by a hook on its projections in the model."""
    run = audit_given(model, task, ["svd(rank=2)@2.1.value"], tmp_path / "run", by="all")
    attention = model.model.model.layers[2].self_attn
    fitted = torch.cat(
        [values_of(model.model, torch.from_numpy(x.astype(np.int64))) for x in task.train]
    )
    axes = torch.linalg.svd(fitted.double(), full_matrices=False)[2][:2]

    def hook(module: Any, given: Any, out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[..., 8:16] = (out[..., 8:16].double() @ axes.T @ axes).float()
        return out

    for split in task.evaluated:
        same = right = total = 0
        for tokens in split:
            ids = torch.from_numpy(tokens.astype(np.int64))[None]
            with torch.inference_mode():
                own = model.model(input_ids=ids).logits[0, :-1].argmax(-1)
                handle = attention.v_proj.register_forward_hook(hook)
                proxy = model.model(input_ids=ids).logits[0, :-1].argmax(-1)
                handle.remove()
            same += int((own == proxy).sum())
            right += int((own == ids[0, 1:]).sum())
            total += len(own)
        found = run.results.filter(split=split.name).filter(pl.col("facet").is_null())
        found = found.filter(pl.col("seed").is_null() & (pl.col("method") == "svd"))
        value = dict(found.select("metric", "value").iter_rows())
        assert found["tokens"].unique().to_list() == [total]
        assert value["same_prediction"] == pytest.approx(same / total, abs=1.5 / total)
        assert value["model_accuracy"] == pytest.approx(right / total, abs=1e-9)
        assert value["same_prediction"] < 0.99


def values_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """[position, dim] the second value head of layer 2."""
    kept: list[torch.Tensor] = []
    projection = model.model.layers[2].self_attn.v_proj
    handle = projection.register_forward_hook(lambda m, x, out: kept.append(out[0, :, 8:16]))
    with torch.inference_mode():
        model(input_ids=tokens[None])
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("until", [None, 0.2])
def test_numbers_do_not_depend_on_the_batch(
    model: HuggingFace, task: Task, until: float | None
) -> None:
    proxies = sweep(SIMPLIFY, model.sites)
    fitted = fit_on_task(model, proxies, task, 30)
    tables = []
    for tokens in (1, 7 * 24, 4096):
        cells = audit_split(
            model,
            task.splits["b"],
            task.candidates,
            [SimplifiedProxy(fitted[p], model) for p in proxies],
            Settings(tokens, stopping=until and Stopping(until, PRIOR_CORRELATION)),
        )
        tables.append(torch.stack([cells[p].sums for p in proxies]))
        seen = [cells[p].seen for p in proxies]
        assert (min(seen) < len(task.splits["b"])) == (until is not None)
    for other in tables[1:]:
        torch.testing.assert_close(tables[0], other, atol=1e-6 * 24, rtol=1e-6)


def test_numbers_do_not_depend_on_order_or_padding(model: HuggingFace, task: Task) -> None:
    """Sorted, shuffled, and one sequence at a time without any padding."""
    proxies = sweep(SIMPLIFY, model.sites)
    fitted = list(fit_on_task(model, proxies, task, 30).values())
    split = task.splits["b"]
    assert len(set(split.lengths)) > 5
    shuffled = np.random.default_rng(0).permutation(len(split))
    by_sequence = []
    for order, tokens in (
        (np.argsort(split.lengths, kind="stable"), 4096),
        (shuffled, 4096),
        (shuffled, 1),
    ):
        ready = [SimplifiedProxy(x, model) for x in fitted]
        part = split.take(order)
        cells = audit_split(model, part, task.candidates, ready, Settings(tokens))
        whole = cells[proxies[0]].index.whole
        sums = torch.stack([cells[p].sums[:, whole] for p in proxies])
        by_sequence.append(torch.empty_like(sums).index_copy_(2, torch.from_numpy(order), sums))
    for other in by_sequence[1:]:
        torch.testing.assert_close(by_sequence[0], other, atol=1e-6 * 24, rtol=1e-6)


def test_a_cell_stops_when_its_confidence_sequence_is_narrow(
    model: HuggingFace, task: Task, tmp_path: Path
) -> None:
    run = audit_given(model, task, SIMPLIFY, tmp_path / "run", by="head", until=0.25)
    whole = run.results.filter(pl.col("facet").is_null() & pl.col("seed").is_null())
    taken = whole.filter(metric="same_prediction").select("simplification", "split", "sequences")
    assert taken["sequences"].min() < taken["sequences"].max()
    split = task.splits["c"]
    full = audit_given(model, task, SIMPLIFY, tmp_path / "full", by="head")
    sums = pl.read_parquet(full.work(0, "c", 0))
    for name, sequences in (
        taken.filter(split="c").select("simplification", "sequences").iter_rows()
    ):
        cell = sums.filter(proxy=name)["same_prediction"].to_numpy().copy()[: len(split)]
        counts, stop = split.lengths - 1.0, len(split)
        for seen in range(LOOK, len(split), LOOK):
            ratios = RatioSums.of(*(torch.from_numpy(x[:seen]) for x in (cell, counts)))
            low, high = sequence_interval(ratios, 0.25)
            if high - low <= 0.25:
                stop = seen
                break
        assert sequences == stop, name


@pytest.mark.parametrize(("until", "threads"), [(None, (1, 1)), (None, (2, 3)), (0.25, (4, 1))])
def test_a_killed_audit_goes_on(
    model: HuggingFace,
    task: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    until: float | None,
    threads: tuple[int, int],
) -> None:
    """To the byte, whatever was done already, and with however many threads."""
    monkeypatch.setattr(works, "PROXIES", 5)
    torch.set_num_threads(threads[0])
    first = audit_given(model, task, SIMPLIFY, tmp_path / "run", by="head", until=until)
    before = contents(first.path)
    done = sorted(first.path.glob("seed-0/works/*.parquet"))
    assert len(done) == 3 * 5  # splits, and 25 proxies in works of 5
    for work in done[::3]:
        work.unlink()
    for name in ("results.parquet", "gaps.parquet", "claims.json", "report.html"):
        (first.path / name).unlink()
    scores = pl.read_parquet(first.path / "seed-0" / "heads.parquet")
    assert scores.select("layer", "head").rows() == [
        *((layer, head) for layer in range(3) for head in range(4)),
        (None, None),
    ]
    (first.path / "seed-0" / "heads.parquet").unlink()
    torch.set_num_threads(threads[1])
    again = audit_given(model, task, SIMPLIFY, tmp_path / "run", by="head", until=until)
    assert contents(again.path) == before


@pytest.fixture
def anamorph(capsys: Any, monkeypatch: Any) -> Any:
    """Runs `anamorph audit` in this process; gives its code and output."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["anamorph", "audit", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        else:
            code = 0
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return run


def test_the_command_line(folder: Path, tmp_path: Path, anamorph: Any) -> None:
    data = ["--data", f"iid={folder}/a.jsonl", "--data", f"ood:b={folder}/b.jsonl"]
    given = ["--model", folder / "model", *data, "--fit-on", "iid", "--fit-sequences", 20]
    spec = ["--simplify", "svd(rank=[1,8])@1.*.{query,key}"]
    out = tmp_path / "run"
    code, text = anamorph(*given, *spec, "--sequences", 40, "--length", 16, "--out", out)
    assert code == 0, text
    assert "svd(rank=8)@1.0" in text and "Report:" in text
    assert "the largest gap of each head" in " ".join(text.split()) and "4 of 4 heads" in text
    assert json.loads((out / "spec.json").read_text())["model"]["class"] == "LlamaForCausalLM"
    for wrong, message in (
        ([*spec, "--out", tmp_path / "x"], "Give either a run folder"),
        (["--model", folder / "model", *spec, "--out", tmp_path / "x"], "needs --data"),
        (["--model", folder / "none", *data, *spec, "--out", tmp_path / "x"], "add --hub"),
        (["--model", folder, *data, *spec, "--out", tmp_path / "x"], "Cannot load a causal"),
        ([*given, "--simplify", "svd(rank=2)@7.*.key", "--out", tmp_path / "x"], "has no site"),
        ([*given, "--simplify", "svd(rank=99)@1.0.key", "--out", tmp_path / "x"], "rank"),
        ([*given, *spec, "--sequences", 1, "--out", tmp_path / "x"], "whole number from 2"),
        ([*given, *spec, "--until", 2, "--out", tmp_path / "x"], "above 0 and below 1"),
    ):
        code, text = anamorph(*wrong)
        assert code == 2 and message in text.replace("\n", " "), (wrong, text)
        assert not (tmp_path / "x").exists()


def test_number_format_and_products_stand_in_the_specification(
    folder: Path, tmp_path: Path, anamorph: Any
) -> None:
    """And are those of the run that goes on, and of what is audited again."""
    before = torch.get_float32_matmul_precision()
    data = ["--data", f"iid={folder}/a.jsonl", "--data", f"ood:b={folder}/b.jsonl"]
    given = ["--model", folder / "model", *data, "--fit-on", "iid", "--fit-sequences", 20]
    given += ["--sequences", 30, "--length", 16, "--simplify", "svd(rank=2)@1.0.value"]
    how = ["--dtype", "bfloat16", "--matmul", "high", "--device", "cpu"]
    code, text = anamorph(*given, *how, "--out", tmp_path / "run")
    assert code == 0, text
    spec = json.loads((tmp_path / "run" / "spec.json").read_text())
    assert (spec["model"]["dtype"], spec["matmul_precision"]) == ("bfloat16", "high")
    assert (spec["device"], spec["accelerator"]) == ("cpu", None)
    assert torch.get_float32_matmul_precision() == before
    for other, named in (
        (how[:2], "matmul_precision: there high, asked highest"),
        (how[2:], "model.dtype: there bfloat16, asked float32"),
    ):
        code, text = anamorph(*given, *other, "--out", tmp_path / "run")
        assert code == 3 and named in " ".join(text.split()), text
    again = ["--simplify", "svd(rank=[1,2])@1.0.value", "--out", tmp_path / "again"]
    code, text = anamorph(tmp_path / "run", *again, "--matmul", "highest")
    assert code == 0, text
    spec = json.loads((tmp_path / "again" / "spec.json").read_text())
    assert (spec["model"]["dtype"], spec["matmul_precision"]) == ("bfloat16", "highest")


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_a_toml_file_is_as_good_as_options(folder: Path, tmp_path: Path, anamorph: Any) -> None:
    file = folder / "audit.toml"  # its paths are relative to it
    file.write_text(
        """
        model = "model"
        out = "from-toml"
        simplify = ["svd(rank=[1,8])@1.*.{query,key}", "onehot@2.1.pattern"]
        fit_on = "iid"
        fit-sequences = 20
        sequences = 40
        length = 16
        until = 0.3
        [data]
        iid = "a.jsonl"
        "ood:b" = "b.jsonl"
        """
    )
    code, text = anamorph(file)
    assert code == 0, text
    assert f"Report: {folder / 'from-toml'}" in text
    options = [
        *("--model", folder / "model", "--simplify", "svd(rank=[1,8])@1.*.{query,key}"),
        *("--simplify", "onehot@2.1.pattern", "--fit-on", "iid", "--fit-sequences", 20),
        *("--sequences", 40, "--length", 16, "--until", 0.3),
        *("--data", f"iid={folder}/a.jsonl", "--data", f"ood:b={folder}/b.jsonl"),
    ]
    code, text = anamorph(*options, "--out", tmp_path / "from-options")
    assert code == 0, text
    written = contents(folder / "from-toml")
    same = contents(tmp_path / "from-options")
    assert sorted(written) == sorted(same)
    assert [name for name in written if written[name] != same[name]] == []
    assert {"spec.json", "results.parquet", "gaps.parquet"} <= set(written)

    code, text = anamorph(file, "--by", "layer", "--sequences", 30, "--out", tmp_path / "other")
    assert code == 0, text
    spec = json.loads((tmp_path / "other" / "spec.json").read_text())
    assert (spec["audit"]["by"], spec["audit"]["sequences"], spec["audit"]["until"]) == (
        "layer",
        30,
        0.3,
    )


def test_a_run_of_ones_own_model_is_audited_again(
    folder: Path, tmp_path: Path, anamorph: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any folder; and not if the model or the data are others by now."""
    own = tmp_path / "own"
    shutil.copytree(folder / "model", own / "model")
    for name in "ab":
        shutil.copy(folder / f"{name}.jsonl", own)
    monkeypatch.chdir(own)
    data = ["--data", "iid=a.jsonl", "--data", "ood:b=b.jsonl", "--fit-on", "iid"]
    sizes = ["--fit-sequences", 20, "--sequences", 30, "--length", 16]
    first = ["--model", "model", *data, *sizes, "--simplify", "svd(rank=2)@1.0.value"]
    code, text = anamorph(*first, "--out", "run")
    assert code == 0, text
    monkeypatch.chdir(tmp_path)
    both = ["--simplify", "svd(rank=[1,2])@1.0.value", "--out", "again"]
    code, text = anamorph(own / "run", *both)
    assert code == 0, text
    before, after = (
        pl.read_parquet(run / "results.parquet").filter(simplification="svd(rank=2)@1.0.value")
        for run in (own / "run", tmp_path / "again")
    )
    assert_frame_equal(before, after, abs_tol=1e-6)
    assert json.loads((tmp_path / "again" / "spec.json").read_text())["simplify"] == both[1:2]

    text = (own / "b.jsonl").read_text()
    (own / "b.jsonl").write_text(text.replace("the", "eht"))
    code, text = anamorph(own / "run", *both[:2], "--out", "third")
    assert code == 3 and "('b' differs). Bring the old ones back" in " ".join(text.split())
    shutil.copy(folder / "b.jsonl", own)
    model = transformers.LlamaForCausalLM.from_pretrained(own / "model")
    model.model.layers[2].mlp.up_proj.weight.data[0, 0] += 1
    model.save_pretrained(own / "model")
    code, text = anamorph(own / "run", *both[:2], "--out", "third")
    assert code == 3 and "(the weights of layer 2 differ)" in " ".join(text.split())
    code, text = anamorph(
        *[str(own / "model") if a == "model" else a for a in first], "--out", own / "run"
    )
    assert code == 2
    assert not (tmp_path / "third").exists()


def test_as_much_is_read_of_a_split_as_it_takes_to_fit_on_it(
    folder: Path, tmp_path: Path, anamorph: Any
) -> None:
    """And a run that is audited again is of the same data, whatever is fitted where by then."""
    data = ["--data", f"iid={folder}/a.jsonl", "--data", f"ood:b={folder}/b.jsonl"]
    data += ["--data", f"ood:c={folder}/c.jsonl", "--fit-on", "iid"]
    sizes = ["--fit-sequences", 30, "--sequences", 20, "--length", 16]
    views = ["--simplify", "svd(rank=2)@1.0.value"]
    both = ["--simplify", "svd(rank=2, on=[train, b])@1.0.value"]

    def read(run: Path) -> dict[str, int]:
        spec = json.loads((run / "spec.json").read_text())
        return {name: about["sequences"] for name, about in spec["task"]["splits"].items()}

    def scored(run: Path) -> set[tuple[str, int]]:
        found = pl.read_parquet(run / "results.parquet").filter(pl.col("facet").is_null())
        return set(found.filter(metric="same_prediction").select("split", "sequences").rows())

    for name, specs in (("views", views), ("both", both)):
        code, text = anamorph(
            "--model", folder / "model", *data, *sizes, *specs, "--out", tmp_path / name
        )
        assert code == 0 and "to fit on, but" not in " ".join(text.split()), text
    assert read(tmp_path / "views") == {"train": 30, "iid": 20, "b": 20, "c": 20}
    assert read(tmp_path / "both") == {"train": 30, "iid": 20, "b": 60, "c": 20}
    assert scored(tmp_path / "both") == {("iid", 20), ("b", 20), ("c", 20)}
    code, text = anamorph(tmp_path / "both", *views, "--out", tmp_path / "views-of-both")
    assert code == 0 and read(tmp_path / "views-of-both")["b"] == 60, text
    code, text = anamorph(tmp_path / "views", *both, "--out", tmp_path / "both-of-views")
    assert code == 0 and "to fit on, but on=b has 10" in " ".join(text.split()), text
    assert read(tmp_path / "both-of-views")["b"] == 20
    assert scored(tmp_path / "both-of-views") == {("iid", 20), ("b", 10), ("c", 20)}
    # A split that there is not is named before anything is read.
    wrong = ["--simplify", "svd(rank=2, on=nowhere)@1.0.value", "--out", tmp_path / "wrong"]
    code, text = anamorph("--model", folder / "model", *data, *sizes, *wrong)
    assert code == 2 and "no split 'nowhere' to fit on; there are: iid, b, c" in text


def test_the_example_can_be_read() -> None:
    options, out = read_audit(Path(__file__).parents[2] / "examples/audit.toml", {})
    assert isinstance(options, GivenSpec) and out.endswith("runs/smollm2")
    assert (options.audit.by, options.audit.until) == ("head", 0.05) and len(options.simplify) == 1
    assert {d.split("=")[0] for d in options.data} == {"iid", "ood:python", "ood:ruby", "ood:prose"}
    for spec in options.simplify:
        assert parse(spec)


MINIMAL = "model = 'model'\nout = 'x'\nsimplify = ['svd(rank=1)@1.0.key']\ndata = {iid = 'a.jsonl'}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "\nlenght = 3", "has the key 'lenght'.*did you mean 'length'"),
        (MINIMAL + "\nlength = '3'", "length: Input should be a valid integer.*given: '3'"),
        (MINIMAL + "\nhub = 1", "hub: Input should be a valid boolean.*given: 1"),
        (MINIMAL + "\nby = 'heads'", "by: Input should be 'all', 'layer' or 'head'.*'heads'"),
        (MINIMAL + "\npacking = 'cut'", "packing: Input should be 'truncate'"),
        (MINIMAL + "\nlength 3", "is not TOML.*line 5"),
        (MINIMAL + "\nrun = 'runs/a'", "either a run folder.*or --model"),
        (MINIMAL.replace("model", "run", 1), "data cannot be given with it"),
        (MINIMAL.replace("{iid = 'a.jsonl'}", "['a.jsonl']"), "data must be a table.*'a.jsonl'"),
        (MINIMAL.replace("{iid = 'a.jsonl'}", "{iid = 3}"), "data must be a table"),
        (MINIMAL.replace("{iid = 'a.jsonl'}", "{}"), "needs --data"),
        (MINIMAL.replace("['svd(rank=1)@1.0.key']", "[]"), "needs --simplify"),
        (MINIMAL.replace("['svd(rank=1)@1.0.key']", "[1]"), r"simplify\.0: .*string.*given: 1"),
        ("out = 'x'", "either a run folder"),
        (MINIMAL, "There is no model folder"),
    ],
)
def test_a_toml_file_that_does_not_fit(
    text: str, message: str, tmp_path: Path, anamorph: Any
) -> None:
    (tmp_path / "audit.toml").write_text(text)
    code, shown = anamorph(tmp_path / "audit.toml")
    assert code == 2
    assert re.search(message, " ".join(shown.split())), shown
    assert not (tmp_path / "x").exists()


def test_a_toml_file_that_is_not_there(tmp_path: Path, anamorph: Any) -> None:
    code, shown = anamorph(tmp_path / "audit.toml")
    assert code == 2 and "Cannot read" in shown and "No such file" in shown


def test_a_name_on_the_hub_is_no_path(tmp_path: Path) -> None:
    (tmp_path / "audit.toml").write_text(MINIMAL.replace("'model'", "'org/name'"))
    file = tmp_path / "audit.toml"

    def read(**given: Any) -> GivenSpec:
        spec, _ = read_audit(file, given)
        assert isinstance(spec, GivenSpec)
        return spec

    assert read().model == str(tmp_path / "org/name")
    assert read(hub=True).model == "org/name"
    (tmp_path / "org/name").mkdir(parents=True)
    assert read(hub=True).model == str(tmp_path / "org/name")
    assert read().data == [f"iid={tmp_path}/a.jsonl"]


def test_a_model_outside_the_attention_interface_has_no_attention_metrics(tmp_path: Path) -> None:
    model = HuggingFace(make("gpt_neo"))
    assert not any(isinstance(s, Site) and s.kind == "query" for s in model.sites)
    texts = {"iid": ["the cat sat on the mat"] * 3 + ["a dog"] * 3, "ood:x": ["a fox ran over"] * 4}
    task = text_task(texts, byte_level(), length=8, fit_on="iid", fit_sequences=2)
    with pytest.raises(AnamorphError, match="embedding has 61 rows"):
        audit_given(model, task, ["svd(rank=2)@0.mlp"], tmp_path / "run", by="all")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "given",
    [
        {"until": float("nan")},
        {"until": 1.0},
        {"until": 0.1, "correlation": float("nan")},
        {"correlation": 0.0},
        {"correlation": 1.5},
        {"batch_tokens": 0},
        {"sequences": 1},
        {"fit_sequences": 0},
        {"learnt": 1.5},
        {"learnt": float("nan")},
    ],
)
def test_arguments_out_of_their_range_are_named(
    given: dict[str, Any], model: HuggingFace, task: Task, tmp_path: Path
) -> None:
    with pytest.raises(AnamorphError, match=list(given)[-1]):
        audit_given(model, task, SIMPLIFY, tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("quick_report")
def test_specs_may_come_one_by_one_or_be_one(
    model: HuggingFace, task: Task, tmp_path: Path
) -> None:
    spec = "svd(rank=2)@1.1.query"
    for i, given in enumerate((spec, iter([spec]), parse(spec)[0])):
        how = {"sequences": 4, "fit_sequences": 4}
        run = audit_given(model, task, given, tmp_path / str(i), **how)  # type: ignore[arg-type]
        assert run.spec["simplify"] == [spec]
        assert set(run.results["simplification"]) == {"identity", spec}


def test_a_decoder_of_our_own_is_a_model_like_any(tmp_path: Path) -> None:
    """Its audit equals the one in memory, and its weights tell it from another."""
    rng = np.random.default_rng(0)

    def split(name: str, role: Any) -> Split:
        offsets = np.concatenate([[0], np.cumsum(rng.integers(4, 13, 20))])
        scored = np.ones(offsets[-1], dtype=bool)
        scored[offsets[:-1]] = False
        return Split(name, role, rng.integers(0, 9, offsets[-1]).astype(np.int32), offsets, scored)

    splits = [split("train", "train"), split("iid", "iid"), split("far", "ood")]
    names = tuple(map(str, range(9)))
    task = Task("random", {"seed": 0}, names, np.arange(9), {s.name: s for s in splits})
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        config = DecoderConfig(vocabulary=9, context=16, heads=2, width=16)
        models.append(Decoder(config).eval())
    simplify = ["svd(rank=[1,8])@*.*.{query,key}"]
    done = audit_given(models[0], task, simplify, tmp_path / "run", by="all")
    alone = audit(models[0], task, simplify, fit_sequences=200)
    keys = ["simplification", "split", "metric", "value"]
    rows = [r.filter(pl.col("seed").is_null()).select(keys) for r in (done.results, alone.results)]
    assert_frame_equal(*rows, check_row_order=False, abs_tol=1e-6)
    assert done.spec["model"]["heads"] == 2
    with pytest.raises(AnamorphError, match="the weights of layer 0"):
        audit_given(models[1], task, simplify, tmp_path / "run", by="all")
