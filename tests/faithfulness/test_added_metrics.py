"""A metric of another package: measured, averaged, compared and reported like our own."""

import dataclasses
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pytest
import torch

import anamorph as am
from anamorph.analysis.findings import read
from anamorph.errors import AnamorphError
from anamorph.faithfulness import metrics
from anamorph.faithfulness.comparison import model_output, position_metrics
from anamorph.faithfulness.divergences import Candidates
from anamorph.faithfulness.metric import Metric
from anamorph.faithfulness.metrics import all_metrics, find_metric, metric_names
from anamorph.tasks.base import Task
from synthetic_run import make_run


def in_top_3(model, logits):
    return (logits.topk(3).indices == model.targets[:, None]).any(-1).float()


def distance(model, proxy):
    return (model - proxy).abs().sum(-1).amax(0)


OURS = metric_names()
TOP_3 = Metric("in_top_3", "in the top three", "share", "higher", "1 = always", "…", in_top_3)
DISTANCE = Metric(
    "distance", "largest distance", "probability", "lower", "0 = same", "…", distance, "attention"
)


def offer(monkeypatch: pytest.MonkeyPatch, **offered: object) -> None:
    monkeypatch.setattr(
        metrics,
        "entry_points",
        lambda group: [EntryPoint(name, f"{__name__}:{name}", group) for name in offered],
    )
    load = EntryPoint.load
    monkeypatch.setattr(
        EntryPoint,
        "load",
        lambda self: offered[self.name] if self.value.startswith(__name__) else load(self),
    )
    all_metrics.cache_clear()


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    offer(monkeypatch, in_top_3=TOP_3, distance=DISTANCE)
    yield
    all_metrics.cache_clear()


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    all_metrics.cache_clear()


@pytest.mark.usefixtures("added")
def test_it_is_measured_beside_our_own_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    model, proxies = rng.normal(size=(6, 9)), rng.normal(size=(4, 6, 9))
    targets = rng.integers(9, size=6)
    p, q = (rng.dirichlet(np.ones(5), size=size) for size in ((2, 6), (4, 2, 6)))
    monkeypatch.setattr("anamorph.faithfulness.formulas.BLOCK", 20)
    found = position_metrics(
        model_output(torch.tensor(model), torch.tensor(targets), Candidates.of(np.arange(9), 9)),
        *(torch.tensor(x, dtype=torch.float32) for x in (proxies, p, q)),
    )
    by_name = dict(zip(metric_names(), found.unbind(1), strict=True))
    assert list(by_name)[-2:] == ["distance", "in_top_3"]
    ranks = (proxies > np.take_along_axis(proxies, targets[None, :, None], -1)).sum(-1)
    np.testing.assert_array_equal(by_name["in_top_3"], ranks < 3)
    expected = [[abs(p[:, i] - x[:, i]).sum(-1).max() for i in range(6)] for x in q]
    np.testing.assert_allclose(by_name["distance"], expected, atol=1e-6)
    alone = position_metrics(
        model_output(torch.tensor(model), torch.tensor(targets), Candidates.of(np.arange(9), 9)),
        torch.tensor(proxies, dtype=torch.float32),
    )
    assert alone.shape[1] == len(metric_names(attention=False))


@pytest.mark.usefixtures("added")
def test_an_audit_gives_its_means_gaps_and_the_identity_exactly(task: Task) -> None:
    torch.manual_seed(0)
    model = am.Decoder(am.DecoderConfig(vocabulary=len(task.vocabulary), context=64))
    audit = am.audit(model, task, [am.SVD(rank=1) @ "1.*.{query,key}"])
    rows = audit.results.filter(pl.col("facet").is_null(), metric="in_top_3", method="svd")
    assert set(rows["split"]) == {split.name for split in task.evaluated}
    assert set(rows["interval"]) == {"binomial"}
    itself = audit.results.filter(metric="distance", method="identity")
    assert itself["value"].to_list() == [0.0] * len(itself)
    assert set(itself["interval"]) == {"exact"}
    gap = audit.gaps.filter(metric="in_top_3").row(0, named=True)
    assert gap["gap"] == pytest.approx(gap["iid"] - gap["ood"])  # higher is better
    gap = audit.gaps.filter(metric="distance").row(0, named=True)
    assert gap["gap"] == pytest.approx(gap["ood"] - gap["iid"])


@pytest.mark.parametrize(
    ("offered", "message"),
    [
        ({"x": 3}, "not a Metric"),
        ({"x": dataclasses.replace(TOP_3, at=None)}, "not a Metric with a function"),
        ({"x": TOP_3}, "names its metric 'in_top_3'"),
        ({"output_kl": dataclasses.replace(TOP_3, name="output_kl")}, "one that is not taken"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    monkeypatch: pytest.MonkeyPatch, offered: dict[str, object], message: str
) -> None:
    offer(monkeypatch, **offered)
    with pytest.raises(AnamorphError, match=message):
        metric_names()


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (lambda model, logits: logits, r"shape \[2, 4, 5\]; expected \[2, 4\]"),
        (lambda model, logits: 2 + in_top_3(model, logits), r"in \[0, 1\]"),
        (lambda model, logits: -1 - in_top_3(model, logits), r"from -1 to -1; expected"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    monkeypatch: pytest.MonkeyPatch, at: object, message: str
) -> None:
    offer(monkeypatch, in_top_3=dataclasses.replace(TOP_3, at=at))
    output = model_output(
        torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64), Candidates.of(np.arange(5), 5)
    )
    with pytest.raises(AnamorphError, match=message):
        position_metrics(output, torch.zeros(2, 4, 5))


def test_a_reader_describes_what_it_does_not_know_by_its_name(tmp_path: Path) -> None:
    assert find_metric("in_top_3").label == "in top 3"
    run = make_run(tmp_path / "run")
    for name in ("results", "gaps"):
        table = pl.read_parquet(run / f"{name}.parquet")
        more = table.filter(metric="output_kl").with_columns(metric=pl.lit("in_top_3"))
        pl.concat([table, more]).write_parquet(run / f"{name}.parquet")
    assert read(run).metrics[-1] == "in_top_3"


@pytest.mark.parametrize("kind", ["output", "attention"])
def test_an_unbounded_metric_below_zero_is_refused(
    monkeypatch: pytest.MonkeyPatch, kind: Literal["output", "attention"]
) -> None:
    made = dataclasses.replace(
        TOP_3, unit="nats", bounded=False, kind=kind, at=lambda model, x: x.float().sum(-1) - 99
    )
    if kind == "attention":
        made = dataclasses.replace(made, at=lambda p, q: q.sum((0, 2)) - 99)
    offer(monkeypatch, in_top_3=made)
    output = model_output(
        torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64), Candidates.of(np.arange(5), 5)
    )
    attention = torch.full((1, 4, 3), 1 / 3)
    with pytest.raises(AnamorphError, match="expected them from 0, as intervals"):
        position_metrics(output, torch.zeros(2, 4, 5), attention, attention[None])


def test_a_metric_that_writes_into_what_it_is_given_changes_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(1)
    p, q = (torch.tensor(rng.dirichlet(np.ones(5), size=n)).float() for n in ((2, 6), (3, 2, 6)))
    model, logits = (torch.tensor(rng.normal(size=n)).float() for n in ((6, 9), (3, 6, 9)))

    def measured() -> torch.Tensor:
        output = model_output(model.clone(), torch.arange(6), Candidates.of(np.arange(9), 9))
        return position_metrics(output, logits.clone(), p.clone(), q.clone())

    before = measured()
    spoils = dataclasses.replace(
        TOP_3, at=lambda model, x: model.logits.zero_()[..., 0] + x.zero_()[..., 0]
    )
    roots = dataclasses.replace(
        TOP_3,
        name="roots",
        kind="attention",
        at=lambda a, b: (a.sqrt_() - b.sqrt_()).abs().mean((0, 2)),
    )
    offer(monkeypatch, in_top_3=spoils, roots=roots)
    after = dict(zip(metric_names(), measured().unbind(1), strict=True))
    for name, values in zip(
        [n for n in metric_names() if n in OURS], before.unbind(1), strict=True
    ):
        assert torch.equal(after[name], values), name


def test_a_metric_whose_function_changed_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, task: Task, tmp_path: Path, quick_report: None
) -> None:
    model = am.Decoder(am.DecoderConfig(len(task.vocabulary), 64, width=8, mlp=16)).eval()

    def audited() -> None:
        am.audit_given(model, task, ["svd(rank=2)@1.*.key"], tmp_path / "run", sequences=5)

    offer(monkeypatch, in_top_3=TOP_3)
    audited()
    offer(monkeypatch, in_top_3=dataclasses.replace(TOP_3, at=lambda m, x: 0 * in_top_3(m, x)))
    with pytest.raises(AnamorphError, match="the metric in_top_3, or its code, differs"):
        audited()
    (tmp_path / "run" / "results.parquet").unlink()
    with pytest.raises(AnamorphError, match="the metric in_top_3, or its code, differs"):
        audited()
    offer(monkeypatch, in_top_3=TOP_3)
    audited()
