"""The examples of docs/extending.md run, and do what the page says."""

import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import anamorph as am
from anamorph.analysis.findings import read
from anamorph.faithfulness import metrics
from anamorph.paper.tables import Tables
from anamorph.report.charts.sections import CHARTS
from anamorph.runs.folder import load_run
from anamorph.tasks.code.facets import LEVELS

PAGE = Path(__file__).parents[1] / "docs/extending.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the examples define, run one after the other."""
    names: dict[str, Any] = {}
    for block in blocks():
        exec(block, names)
    return names


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


def test_the_metric_takes_its_file_and_a_line(
    page: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = (b for b in blocks() if "IN_TOP_3" in b)
    (tmp_path / "mine.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(metrics, "BUILT_IN", (*metrics.BUILT_IN, "mine:IN_TOP_3"))
    metrics.all_metrics.cache_clear()
    try:
        task = page["task"]
        torch.manual_seed(0)
        model = am.Decoder(am.DecoderConfig(vocabulary=len(task.vocabulary), context=64)).eval()
        found = am.audit(model, task, [am.SVD(rank=2) @ "1.*.key"], sequences=20)
    finally:
        metrics.all_metrics.cache_clear()
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
