"""Killed with -9 and begun again, a run ends as if nobody had: `benchmarks/kill.py` does ten."""

import random
import subprocess
import time
from pathlib import Path

import pytest

from commands import SMOKE, environment

STAGES = ("seed-0/checkpoint.safetensors", "seed-0/works/*.parquet", "figures/*")
"""What has just appeared when a run is killed, a fraction of a second later."""


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_results(smoke_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    rng = random.Random(0)
    for stage in STAGES:
        process = subprocess.Popen(
            [*SMOKE, "--out", out], env=environment(), stdout=subprocess.DEVNULL
        )
        while process.poll() is None and not any(out.glob(stage)):
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.3))
        assert process.poll() is None, f"it ended before {stage}"
        process.kill()
        process.wait()
    done = subprocess.run([*SMOKE, "--out", out], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("results.parquet", "gaps.parquet", "claims.json", "seed-0/model.safetensors"):
        assert (out / name).read_bytes() == (smoke_run / name).read_bytes(), name
    assert (out / "report.html").exists()
    assert not list(out.rglob("*.tmp"))
