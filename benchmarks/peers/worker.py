"""One peer in a process of its own: the equality gate, and then a sweep whenever it is told to.

    python benchmarks/peers/worker.py FOLDER PEER VARIANT METRICS THREADS

Answers one line of JSON for the gate and one for every line `run` on standard input.
"""

import importlib
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from work import METRICS, Sweep, gate_cell

TOLERANCE = 1e-5


@torch.inference_mode()
def main() -> None:
    folder, peer, variant, metrics, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    torch.set_num_threads(int(threads))

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    work = load_file(Path(folder) / "work.safetensors")
    module = importlib.import_module(peer)
    run = module.VARIANTS[variant](
        Path(folder) / "weights.safetensors", work["tokens"], work["projectors"]
    )
    if isinstance(run, Sweep):
        run.metrics = METRICS[metrics]
    answer(
        **gate(run, work),
        version=importlib.metadata.version(module.PACKAGE),
        attention=getattr(run, "attention", "own"),
    )
    for line in sys.stdin:
        if line.strip() != "run":
            raise SystemExit(f"the worker was told {line!r} and knows only 'run'")
        start = time.perf_counter()
        run()
        answer(seconds=time.perf_counter() - start)


def gate(run: Any, work: dict[str, Tensor]) -> dict[str, Any]:
    """The largest differences to plain hooks, and why the peer may not race, if it may not."""
    gaps: dict[str, float] = {}
    if isinstance(run, Sweep):
        logits = run.unedited(work["tokens"][0, :, :-1])
        gaps["logits"] = relative_difference(logits, work["unedited"])
        logits = run.edited(gate_cell(work["projectors"]))
        gaps["edited logits"] = relative_difference(logits, work["edited"])
    results = run()
    wrong = (results - work["results"]).abs()
    flips = wrong[:, 1] * work["tokens"][..., 1:].numel()  # [cell] at least so many
    tied = (flips > 0.5) & (flips < work["near_ties"] + 0.5)
    gaps["JSD"] = float(wrong[:, 0].max())
    gaps["cross-entropy"] = float(wrong[:, 2].max())
    gaps["agreement"] = float(wrong[:, 1].masked_fill(tied, 0).max())
    failed = [f"{name} by {gap:.1e}" for name, gap in gaps.items() if not gap <= TOLERANCE]
    return {
        "failed": ", ".join(failed),
        "results": max(gaps[name] for name in ("JSD", "cross-entropy", "agreement")),
        "logits": max(gaps.get("logits", 0.0), gaps.get("edited logits", 0.0)),
        "ties": round(float(flips[tied].sum())),
    }


def relative_difference(logits: Tensor, reference: Tensor) -> float:
    """The largest, in parts of the largest logit.

    In float32 two orders of the same sums differ by 1e-5 somewhere among millions of logits that
    reach 10; in float64 they agree.
    """
    return float((logits - reference).abs().max() / reference.abs().max())


if __name__ == "__main__":
    main()
