"""The tables of many proxies: time and memory, a fresh process for each number of proxies.

    python benchmarks/tables.py [--proxies 1250,2500,5000,10000] [--splits 10] [--in-memory]

Every split has 1,000 sequences and two facets of three levels each; metrics are those of every
audit. Cells are made up as they are asked for, as those of a run are read; what making them takes
is told, too. The tables are written to files, as those of a run are, or made in memory, as those of
`am.audit` are.
"""

import argparse
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import numpy as np
import polars as pl
import torch

from anamorph.faithfulness.gaps import Thresholds
from anamorph.faithfulness.measuring import CellKey, ProxyInfo
from anamorph.faithfulness.spooled import spooled, write_rows
from anamorph.faithfulness.sums import CellSums, SumIndex
from anamorph.faithfulness.tables import parts, tabulate
from anamorph.tasks import Split
from anamorph.tasks.base import Facet, Role

TOKENS = 12  # of a sequence
LEVELS = ("low", "middle", "high")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--proxies", default="1250,2500,5000,10000")
    arguments.add_argument("--splits", type=int, default=10)
    arguments.add_argument("--sequences", type=int, default=1000)
    arguments.add_argument("--in-memory", action="store_true")
    options = arguments.parse_args()
    numbers = [int(number) for number in options.proxies.split(",")]
    if len(numbers) == 1:
        measure(numbers[0], options.splits, options.sequences, options.in_memory)
        return
    given = [f"--splits={options.splits}", f"--sequences={options.sequences}"]
    given += ["--in-memory"] * options.in_memory
    for number in numbers:
        subprocess.run([sys.executable, __file__, f"--proxies={number}", *given], check=True)


class Made(Mapping[CellKey, CellSums]):
    """Cells of some splits, made from a few sums as they are asked for."""

    def __init__(self, proxies: int, splits: int, sequences: int) -> None:
        rng = np.random.default_rng(0)
        self.proxies = [info(number) for number in range(proxies)]
        offsets, size = np.arange(sequences + 1) * TOKENS, sequences * TOKENS
        self.index = {
            name: SumIndex.of(
                Split(
                    name,
                    "ood" if number else "iid",
                    np.zeros(size, np.int32),
                    offsets,
                    np.arange(size) % TOKENS > 0,
                    {
                        facet: Facet(rng.integers(3, size=size).astype(np.int8), LEVELS)
                        for facet in ("depth", "distance")
                    },
                )
            )
            for number, name in enumerate(["iid", *(f"ood_{n}" for n in range(1, splits))])
        }
        self.seconds = 0.0

    def __getitem__(self, key: CellKey) -> CellSums:
        begun = process_time()
        cell = CellSums(self.index[key[2]])
        number = int(key[1].partition("=")[2].partition(")")[0])
        share = torch.rand(len(cell.metrics), 1, generator=torch.Generator().manual_seed(number))
        tokens = torch.from_numpy(cell.index.tokens).double()
        cell.sums.copy_((tokens * share).round())
        self.seconds += process_time() - begun
        return cell

    def __iter__(self) -> Iterator[CellKey]:
        for split, proxy in product(self.index, self.proxies):
            yield 0, proxy.simplification, split

    def __len__(self) -> int:
        return len(self.index) * len(self.proxies)


def info(number: int) -> ProxyInfo:
    sites = f"{number // 320}.{number // 10 % 32}.{{query,key}}"
    if not number:
        return ProxyInfo("identity(number=0)", "identity", "identity", None, None, None, "")
    text = f"svd(rank={number})@{sites}"
    return ProxyInfo(text, "svd", f"svd@{sites}", "rank", float(number), None, sites)


def measure(proxies: int, splits: int, sequences: int, in_memory: bool) -> None:
    torch.set_num_threads(1)
    made = Made(proxies, splits, sequences)
    before = peak()
    begun = process_time()
    roles: dict[str, Role] = {name: "iid" if name == "iid" else "ood" for name in made.index}
    if in_memory:
        rows = sum(map(len, tabulate(made, made.proxies, roles, reference="iid")))
    else:
        rows = written(made, roles)
    took = process_time() - begun
    print(
        f"{proxies:>6} proxies x {splits} splits: {took:8.1f} s of processor time, of them "
        f"{made.seconds:.1f} for the cells; {peak():,.0f} MB at most, {before:,.0f} before; "
        f"{rows:,} rows",
        flush=True,
    )


def written(made: Made, roles: dict[str, Role]) -> int:
    """Write the tables, and tell how many rows they have."""
    some, rows = parts(made, made.proxies, roles, "iid", Thresholds()), 0
    with spooled(some, Thresholds()) as tables, TemporaryDirectory() as folder:
        for name, table in tables._asdict().items():
            write_rows(Path(folder) / f"{name}.parquet", table)
            rows += table.select(pl.len()).collect().item()
    return rows


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
