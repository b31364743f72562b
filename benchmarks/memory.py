"""Does memory grow from cell to cell? 1,000 cells of a small GPT-2 in one process; and the tables.

    python benchmarks/memory.py [--cells 1000]
    python benchmarks/memory.py --tables [--proxies 10000]

Audits the same model again and again with other proxies, fitting included, 50 cells at a time, as a
worker on a cluster does, and prints the resident memory as it goes. Ends with code 1 if it is more
than 2 % larger at the end than after the first 50 cells.
"""

import argparse
import resource
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from anamorph.auditing.engine import audit_split
from anamorph.auditing.proxies import SimplifiedProxy
from anamorph.faithfulness.measuring import CellKey, ProxyInfo
from anamorph.faithfulness.sums import CellSums, SumIndex
from anamorph.faithfulness.tables import tabulate
from anamorph.models.huggingface.model import HuggingFace
from anamorph.simplifications import expand, fit
from anamorph.tasks import Split
from anamorph.tasks.batches import collate

STEP = 50
LENGTH = 64
SEQUENCES = 64


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--cells", type=int, default=1000)
    arguments.add_argument("--tables", action="store_true")
    arguments.add_argument("--proxies", type=int, default=10_000)
    options = arguments.parse_args()
    if options.tables:
        raise SystemExit(tables(options.proxies) > 64 * 1024)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=2000,
        n_embd=128,
        n_layer=4,
        n_head=8,
        n_positions=LENGTH,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = HuggingFace(GPT2LMHeadModel(config).eval())
    rng = np.random.default_rng(0)
    train, *splits = (
        Split(
            name,
            role,  # type: ignore[arg-type]
            rng.integers(2000, size=SEQUENCES * LENGTH).astype(np.int32),
            np.arange(SEQUENCES + 1) * LENGTH,
            np.arange(SEQUENCES * LENGTH) % LENGTH > 0,
        )
        for name, role in (("train", "train"), ("iid", "iid"), ("other", "ood"))
    )
    places = [
        (layer, head, rank) for layer in range(4) for head in range(8) for rank in range(1, 17)
    ]
    resident, done = [], 0
    while done < options.cells:
        specs = [
            f"svd(rank={rank})@{layer}.{head}.{{query,key}}"
            for layer, head, rank in (
                places[(done // 2 + i) % len(places)] for i in range(STEP // 2)
            )
        ]
        fitted = fit(model, expand(specs), {"train": [collate(train, np.arange(SEQUENCES))]})
        for split in splits:
            proxies = [SimplifiedProxy(x, model) for x in fitted.values()]
            found = audit_split(model, split, np.arange(2000), proxies)
            done += len(found)
        resident.append(megabytes())
        print(f"{done:>5} cells: {resident[-1]:8.1f} MB resident", flush=True)
    growth = resident[-1] / resident[0] - 1
    print(f"after the first {STEP} cells to the end: {growth:+.1%}")
    raise SystemExit(growth > 0.02)


class Made(Mapping[CellKey, CellSums]):
    """Cells of two splits with 100 sequences each, made as they are asked for."""

    def __init__(self, proxies: Sequence[ProxyInfo]) -> None:
        self.proxies = proxies
        offsets = np.arange(101) * 10
        scored = np.arange(1000) % 10 > 0
        self.index = {
            name: SumIndex.of(Split(name, name, np.zeros(1000, np.int32), offsets, scored))  # type: ignore[arg-type]
            for name in ("iid", "ood")
        }

    def __getitem__(self, key: CellKey) -> CellSums:
        cell = CellSums(self.index[key[2]])
        cell.sums.copy_(torch.rand(cell.sums.shape) * 10)
        return cell

    def __iter__(self) -> Iterator[CellKey]:
        return ((0, p.simplification, split) for p in self.proxies for split in self.index)

    def __len__(self) -> int:
        return 2 * len(self.proxies)


def tables(number: int) -> float:
    """Bytes a proxy by which the peak grows from a tenth of so many to all."""
    peaks = []
    for some in (number // 10, number):
        made = Made(
            [ProxyInfo(f"svd(rank={i})", "svd", "svd", "rank", i, None, "") for i in range(some)]
        )
        tabulate(made, made.proxies, {"iid": "iid", "ood": "ood"}, reference="iid")
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        print(f"{some:>6} proxies: {peaks[-1] / 2**20:8.1f} MB at most", flush=True)
    growth = (peaks[1] - peaks[0]) / (number - number // 10)
    print(f"{growth / 1024:.1f} kB a proxy")
    return growth


def megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
