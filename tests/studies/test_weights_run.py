"""Changes of weights in a run folder, from the command line, and gone on with."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from anamorph.auditing.works import Auditor
from anamorph.runs.folder import load_run

pytestmark = pytest.mark.usefixtures("quick_report")

SPECS = [
    "quantize(bits=[2,8], group=8, calibrated=true)@*.{attention,mlp}",
    "prune(density=0.5, by=wanda, on=unseen_depth[0::2])@1.mlp",
    "low_rank(rank=16, whitened=true)@1.mlp",
    "low_rank(rank=1)@1.*.pattern",
    "svd(rank=2)@1.*.key",
]


def test_a_run_is_gone_on_with_to_the_byte(
    smoke_run: Path, tmp_path: Path, anamorph: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [word for spec in SPECS for word in ("--simplify", spec)]
    done = anamorph("audit", smoke_run, *specs, "--out", tmp_path / "whole")
    assert done.code == 0, done.error
    execute, left = Auditor.execute, iter(range(9))

    def stops(self: Auditor, *given: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return execute(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(Auditor, "execute", stops)
        assert anamorph("audit", smoke_run, *specs, "--out", tmp_path / "parts").code != 0
    assert anamorph("audit", smoke_run, *specs, "--out", tmp_path / "parts").code == 0
    whole, parts = (load_run(tmp_path / name) for name in ("whole", "parts"))
    assert_frame_equal(whole.results, parts.results, check_exact=True)
    assert_frame_equal(whole.gaps, parts.gaps, check_exact=True)
    fits = [(run.seed(0) / "simplifications.safetensors").read_bytes() for run in (whole, parts)]
    assert fits[0] == fits[1]
    rows = whole.results.filter(pl.col("facet").is_null(), seed=0, metric="output_kl")
    bits = rows.filter(pl.col("method") == "quantize").sort("split", "size")
    two, eight = (bits.filter(size=size)["value"].to_numpy() for size in (2, 8))
    assert len(two) == 6
    assert (eight < 0.02).all() and (two > 10 * eight).all()
    full = rows.filter(pl.col("simplification").str.starts_with("low_rank(rank=16"))
    np.testing.assert_array_equal(full["value"].to_numpy(), 0.0)  # law 2
    assert set(rows["method"]) == {"identity", "quantize", "prune", "low_rank", "svd"}
