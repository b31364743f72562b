"""One peer in a process of its own: trains a coder once, and writes what it makes of other points.

    python benchmarks/coders/worker.py FOLDER PEER STEPS RATE THREADS

FOLDER holds `points.safetensors` with `train` and `held_out` [points, width], and `shape.json`. A
peer is a module with `PACKAGE` and `train(points, shape, steps, rate)`, which gives a function of
points [points, width]. Prints one line of JSON, and writes `PEER.safetensors`.
"""

import importlib
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def main() -> None:
    folder, peer, steps, rate, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    points = load_file(Path(folder) / "points.safetensors")
    shape = json.loads((Path(folder) / "shape.json").read_text())
    module = importlib.import_module(peer)
    usual = None if rate == "usual" else float(rate)
    module.train(points["train"], shape, 2, usual)  # what is done once is not timed
    start, processor = time.perf_counter(), time.process_time()
    write = module.train(points["train"], shape, int(steps), usual)
    took = {
        "seconds": time.perf_counter() - start,
        "processor": time.process_time() - processor,
        "version": importlib.metadata.version(module.PACKAGE),
    }
    with torch.no_grad():
        made = torch.cat([write(some) for some in points["held_out"].split(1024)])
    save_file({"made": made.float().contiguous()}, Path(folder) / f"{peer}.safetensors")
    print(json.dumps(took), file=answers, flush=True)


if __name__ == "__main__":
    main()
