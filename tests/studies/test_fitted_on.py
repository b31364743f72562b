"""A study of simplifications that are fitted on another split than the training split."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import anamorph as am
from anamorph.models.sites import Site
from anamorph.simplifications import FittedProxies
from anamorph.tasks import Task
from plain import forward, small_model

OPTIONS: dict[str, Any] = {"sequences": 12, "fit_sequences": 9, "by": "all"}


def test_a_run_holds_both_and_says_so(task: Task, tmp_path: Path) -> None:
    model = small_model(task)
    specs = ["svd(rank=1)@1.0.key", "svd(rank=1, on=unseen_depth)@1.0.key"]
    run = am.audit_given(model, task, specs, tmp_path / "run", **OPTIONS)
    found = run.results.filter(pl.col("metric") == "output_kl", pl.col("facet").is_null())
    values = found.filter(pl.col("seed").is_null()).pivot(
        "simplification", index="split", values="value"
    )
    assert set(specs) < set(values.columns)
    assert (values[specs[0]] != values[specs[1]]).all()
    (choice,) = [c for c in run.spec["choices"] if c["what"] == "Data for the simplifications"]
    assert "with on=, as many of what is named (unseen_depth)" in choice["choice"]
    # Of unseen depth every second sequence is fitted on, and the others are scored.
    counts = dict(found.filter(simplification=specs[0]).select("split", "sequences").iter_rows())
    assert counts["unseen_depth"] == counts["iid"] == 12
    whole = am.audit(model, task, specs, **(OPTIONS | {"sequences": 1000})).results
    of_view = whole.filter(simplification=specs[0]).drop_nulls("seed")
    counts = dict(of_view.select("split", "sequences").unique("split").iter_rows())
    assert counts["unseen_depth"] == len(task.splits["unseen_depth"]) / 2
    fitted = FittedProxies.load(run.path / "seed-0/simplifications.safetensors")
    fit_on = (list(task.train)[:9], list(task.splits["unseen_depth"])[1::2][:9])
    for proxy, some in zip(list(fitted)[1:], fit_on, strict=True):
        site = Site(1, 0, "key")
        keys = np.concatenate([forward(model, tokens, {})[site] for tokens in some])
        axis = torch.from_numpy(np.abs(np.linalg.svd(keys)[2][:1]))
        found_axis = fitted[proxy].by_site[site].components_.abs()
        torch.testing.assert_close(found_axis, axis, atol=1e-4, rtol=1e-4)


def test_a_split_that_there_is_not_is_named_before_anything_is_done(
    task: Task, tmp_path: Path
) -> None:
    with pytest.raises(am.AnamorphError, match=r"no split 'nowhere' to fit on; there are: train, "):
        am.audit_given(
            small_model(task),
            task,
            ["svd(rank=1, on=nowhere)@1.0.key"],
            tmp_path / "run",
            **OPTIONS,
        )
    assert not (tmp_path / "run").exists()
