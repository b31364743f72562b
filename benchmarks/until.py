"""What stopping early saves: every interval of a sweep so narrow, against a number set beforehand.

    python benchmarks/until.py [--until 0.05]

The work is that of `peers.py`, on more sequences. anamorph stops each cell by itself once the
confidence sequence of its agreement is so narrow. A loop of plain hooks takes one number of
sequences for all cells, set beforehand, in one of two ways:

*nothing known*: enough for the width whatever the agreement is (the variance of .5), with the
correlation within sequences that anamorph assumes too until the data show otherwise.

*in hindsight*: the fewest with which the widest of the usual 95 % intervals (normal, over
sequences) of these very cells is as narrow. Nobody can know it beforehand: the most favourable case
for the loop, and a limit for what stopping early can cost.

The loop's time is that of one batch of 16 sequences, as measured here, times the batches it needs.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).parent / "peers"))
import anamorph_
import hooks
import work

from anamorph.auditing.engine import Settings, audit_split
from anamorph.faithfulness.confidence import PRIOR_CORRELATION
from anamorph.faithfulness.estimates import Stopping
from anamorph.faithfulness.metrics import metric_names

METRICS = metric_names()


@torch.inference_mode()
def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--until", type=float, default=0.05)
    arguments.add_argument("--correlation", type=float, default=PRIOR_CORRELATION)
    arguments.add_argument("--batches", type=int, default=12, help="of 16 sequences, at most")
    options = arguments.parse_args()
    shape = work.Shape()
    model = work.random_model(shape, 0)
    generator = torch.Generator().manual_seed(1)

    def draw(*size: int) -> torch.Tensor:
        return torch.randint(shape.vocabulary, size, generator=generator)

    projectors = work.fit_projectors(model, draw(work.FIT_SEQUENCES, shape.length))
    tokens = draw(options.batches, work.SEQUENCES, shape.length + 1)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        work.save_model(model, shape, weights)
        setting = anamorph_.setting(weights, tokens, projectors)
        loops = {
            "every forward": hooks.EveryForward(weights, tokens[:1], projectors),
            "prefix": hooks.Prefix(weights, tokens[:1], projectors),
        }
    model_, split, proxies = setting
    candidates = np.arange(shape.vocabulary)

    start = time.perf_counter()
    settings = Settings(stopping=Stopping(options.until, options.correlation))
    found = audit_split(model_, split, candidates, proxies, settings)
    ours = time.perf_counter() - start
    taken = np.array([found[p.spec].seen for p in proxies])

    everything = audit_split(model_, split, candidates, proxies)
    metric = METRICS.index("same_prediction")
    agreement = np.stack(
        [
            (sums.sums[metric] / torch.from_numpy(sums.index.tokens)).numpy()[sums.index.whole]
            for sums in (everything[p.spec] for p in proxies)
        ]
    )  # [cell, sequence]
    wide = 2 * norm.ppf(0.975) * agreement.std(axis=1, ddof=1)
    needed = np.ceil((wide / options.until) ** 2)
    print(
        f"agreement: lowest {agreement.mean(1).min():.3f}, median "
        f"{np.median(agreement.mean(1)):.3f}, highest {agreement.mean(1).max():.3f}"
    )
    print(
        f"anamorph: {ours:.1f} s, sequences a cell: mean {taken.mean():.1f}, most {taken.max()} of "
        f"{len(split)}"
    )
    inflated = 1 + options.correlation * (shape.length - 1)
    blind = np.ceil((norm.ppf(0.975) / options.until) ** 2 * inflated / shape.length)
    numbers = {"nothing known": blind, "in hindsight": needed.max()}
    for how, number in numbers.items():
        print(f"a number set beforehand, {how}: {number:.0f} sequences")
    print(f"needed in hindsight by a cell, mean: {needed.mean():.1f}")
    for name, loop in loops.items():
        times = []
        for _ in range(3):
            start = time.perf_counter()
            loop()
            times.append(time.perf_counter() - start)
        for how, number in numbers.items():
            theirs = float(np.median(times)) * number / work.SEQUENCES
            print(f"hooks, {name}, {how}: {theirs:.1f} s; ratio {theirs / ours:.2f}")


if __name__ == "__main__":
    main()
