"""The examples of docs/extending.md run, and do what the page says."""

import json
import re
import shlex
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file

import anamorph as am
from anamorph import registered
from anamorph.analysis.findings import read
from anamorph.faithfulness import metrics
from anamorph.paper.tables import Tables
from anamorph.report.charts.sections import CHARTS
from anamorph.runs.folder import load_run
from anamorph.simplifications.formats.reading import read_coder
from anamorph.studies.plugins import plugged
from anamorph.tasks.code.facets import LEVELS

PAGE = Path(__file__).parents[1] / "docs/extending.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)


@pytest.fixture(scope="module")
def page() -> Iterator[dict[str, Any]]:
    """What the examples define, run one after the other; what they register is forgotten again."""
    names: dict[str, Any] = {}
    with plugged([]):
        for block in blocks():
            exec(block, names)
        yield names


def test_the_task_repeats_its_words(page: dict[str, Any]) -> None:
    task = page["task"]
    roles = {split.name: split.role for split in task.splits.values()}
    assert roles == {"train": "train", "iid": "iid", "longer": "ood"}
    for split in task.splits.values():
        for number, tokens in enumerate(split):
            length = list(tokens).index(1) - 1
            np.testing.assert_array_equal(tokens[1 : length + 1], tokens[length + 2 :])
            scored = split.scored[split.offsets[number] : split.offsets[number + 1]]
            np.testing.assert_array_equal(scored, np.arange(len(tokens)) > length + 1)
    assert page["twice"]().fingerprints() == task.fingerprints()
    model, _ = am.train(task, config=am.TrainingConfig(steps=5, batch_tokens=512))
    results = am.audit(model, task, [am.SVD(rank=2) @ "1.*.key"], sequences=20).results
    assert set(results.filter(facet="word", split="iid")["level"]) == {"4–7", "8–10"}


def test_the_metric_is_registered(page: dict[str, Any]) -> None:
    assert page["IN_TOP_3"] in metrics.all_metrics().values()
    task = page["task"]
    torch.manual_seed(0)
    model = am.Decoder(am.DecoderConfig(vocabulary=len(task.vocabulary), context=64)).eval()
    found = am.audit(model, task, [am.SVD(rank=2) @ "1.*.key"], sequences=20)
    rows = found.results.filter(metric="in_top_3", method="identity", split="longer")
    split = task.splits["longer"].take(np.arange(20))
    hits: list[bool] = []
    for number, tokens in enumerate(split):
        scored = split.scored[split.offsets[number] : split.offsets[number + 1]]
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens.astype(np.int64))[None])[0].numpy()
        for at in np.flatnonzero(scored):
            hits.append(tokens[at] in np.argsort(logits[at - 1])[-3:])
    assert rows.filter(pl.col("facet").is_null())["value"].to_list() == pytest.approx(
        [np.mean(hits)] * 2
    )
    assert "in_top_3" in found.gaps["metric"]


def test_the_metric_takes_its_file_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = (b for b in blocks() if "IN_TOP_3 = " in b)
    (tmp_path / "mine.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    with plugged([]):  # beside it nothing is registered
        monkeypatch.setattr(metrics, "BUILT_IN", (*metrics.BUILT_IN, "mine:IN_TOP_3"))
        monkeypatch.setattr(metrics, "registered", lambda group: [])
        metrics.all_metrics.cache_clear()
        assert metrics.metric_names()[-1] == "in_top_3"
    metrics.all_metrics.cache_clear()


def test_the_facet_tells_what_was_seen(page: dict[str, Any]) -> None:
    split = page["labelled"].splits["longer"]
    codes = [int(t in s[:n]) for s in map(list, split) for n, t in enumerate(s)]
    assert split.facets["repeated"].codes.tolist() == codes and 0 < sum(codes) < len(codes)


def test_the_model_is_audited(page: dict[str, Any]) -> None:
    task = page["task"]
    torch.manual_seed(0)
    model = page["Averages"](len(task.vocabulary)).eval()
    found = am.audit(model, task, "svd(rank=[2,16])@*.mlp", sequences=20).results
    kl = found.filter(metric="output_kl", split="iid", size=16.0)["value"]
    assert kl.max() < 1e-6 < found.filter(metric="output_kl", split="iid", size=2.0)["value"].min()


def test_the_reader_reads(page: dict[str, Any], tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    into, out = torch.randn(4, 6, generator=draw), torch.randn(6, 4, generator=draw)
    weights = {"into": into, "bias": torch.zeros(6), "out": out, "shift": torch.ones(4)}
    save_file(weights, tmp_path / "mine.safetensors")
    (tmp_path / "about.json").write_text(json.dumps({"place": "blocks.3.hook_resid_post"}))
    x = torch.randn(5, 4, generator=draw)
    stored = read_coder(tmp_path)
    torch.testing.assert_close(stored.coder()(x), (x @ into).clamp(min=0) @ out + 1)
    assert stored.reads == "blocks.3.hook_resid_post"


@pytest.mark.usefixtures("quick_report")
def test_the_plugin_does_what_its_commands_say(
    anamorph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registered, "_parts", {})  # what the page has registered in this process
    (block,) = (b for b in blocks() if b.startswith("# parts.py"))
    (tmp_path / "parts.py").write_text(block)
    (commands,) = re.findall(r"```sh\n(anamorph run.*?)```", PAGE.read_text("utf-8"), re.S)
    few = ["--set", "training.steps=5", "--set", "task.train=100", "--set", "task.test=20"]
    for command in commands.splitlines():
        _, verb, *words = shlex.split(command)
        done = anamorph(verb, *words, *(few if verb == "run" else ()))
        assert done.code == 0, done.error
    found = am.load_run("runs/more").results
    assert "shrink(by=0.1)@1.*.key" in found["simplification"] and "doubt" in found["metric"]


def test_the_chart_and_the_claim_read_a_run(page: dict[str, Any], smoke_run: Path) -> None:
    figure = page["by_method"](read(smoke_run))
    gaps = load_run(smoke_run).gaps.filter(metric="same_prediction")
    assert len(figure.data) == gaps["seed"].is_null().sum()
    assert figure.still()["facet"]
    tables = Tables.of(load_run(smoke_run))
    status, text, numbers = page["CLAIMS"][0].judge(tables)
    rows = tables.verdicts().filter(split="unseen_depth")
    assert numbers["worse"] == (rows["change"] == "worse").sum()
    assert (status == "holds") == (2 * numbers["worse"] > len(rows)) and str(len(rows)) in text


def test_the_parts_of_the_report_are_those_that_there_are() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|,(]+?) *[|,(]", PAGE.read_text("utf-8"), re.M)
    assert [key for key, _ in rows] == list(CHARTS)
    template = resources.files("anamorph.report").joinpath("templates/report.html.j2").read_text()
    for key, heading in rows:
        before = template.partition(f'charts("{key}")')[0]
        assert heading in re.findall(r"<h[23]>(.*?)</h", before)[-1], key


def test_the_facets_of_code_are_told() -> None:
    table = PAGE.with_name("code.md").read_text("utf-8").partition("## Facets")[2]
    assert re.findall(r"^\| ([\w ]+?) \|", table, re.M)[1:] == list(LEVELS)
