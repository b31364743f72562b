"""`--dry-run`: what a study would do and take, in the terminal."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anamorph.analysis.words import split_label
from anamorph.cli.console import stdout
from anamorph.errors import AnamorphError
from anamorph.runs.opening import check_folder
from anamorph.store import Address
from anamorph.studies.dry_run import Estimate, estimate
from anamorph.studies.planned import NODE_WORKERS, OVERHEAD, START_UP
from anamorph.studies.sources import Study

DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Only tell what would be done, and what it takes, by a little of it; write nothing.",
    ),
]


On = Annotated[
    int | None,
    typer.Option(
        "--on",
        help="With --dry-run: tell the time on so many workers of a cluster too, by simulation.",
        min=1,
        show_default=False,
    ),
]


def tell(
    study: Study,
    folder: Address | str,
    workers: int | None = None,
    on: int | None = None,
    as_json: bool = False,
) -> None:
    """Estimate a study, and print it.

    Raises:
        RunFolderError: if the study itself would be refused in that run folder.
    """
    check_folder(folder, study.describe())
    found = estimate(study, workers)
    if as_json:
        print(json.dumps(described(found, on), indent=2))
        return
    print_estimate(found, stdout())
    if on is not None:
        print_on_workers(found, on, stdout())
    stdout().print("Nothing was written.")


def require_dry_run(dry_run: bool, on: int | None) -> None:
    """Refuse `--on` where something would be done."""
    if on is not None and not dry_run:
        raise AnamorphError("--on tells of a cluster by simulation; give --dry-run too.")


def described(found: Estimate, on: int | None) -> dict[str, Any]:
    """An estimate as JSON has it: times in seconds, sizes in bytes."""
    load = found.load
    seconds = {"all": found.seconds, **{part.part: part.seconds for part in found.took}}
    of_work = load._asdict() | {"seconds": sum(load.seconds) / len(load.seconds)}
    told: dict[str, Any] = {
        "splits": [split._asdict() for split in found.splits],
        "proxies": found.methods,
        "models": found.seeds,
        "parameters": found.parameters,
        "works": found.works,
        "cells": found.cells,
        "flops": None if found.flops is None else found.flops._asdict(),
        "seconds": seconds,
        "memory": found.memory,
        "device_memory": found.device_memory,
        "disk": found.disk,
        "work": of_work,
        "stops_early": found.early,
    }
    if on is not None:
        there = found.on(on)
        told["on"] = {
            "workers": on,
            "threads": load.threads,
            "seconds": there.seconds,
            "speed_up": there.speed_up,
            "efficiency": there.efficiency,
            "limit": there.limit,
            "busy": there.works.busy,
        }
    return told


def print_on_workers(found: Estimate, on: int, console: Console) -> None:
    """Time, speed-up and what limits it."""
    there = found.on(on)
    console.print(
        f"[bold]On {on:,} workers of {_count(found.load.threads, 'thread')} each: about "
        f"{_time(there.seconds)}[/], {there.speed_up:,.1f} times as fast as one "
        f"({there.efficiency:.0%} a worker). Most of it: {there.limit}.",
        soft_wrap=True,
    )
    console.print(
        f"By simulation, of {NODE_WORKERS} workers a node, {1000 * OVERHEAD:.0f} ms of the driver "
        f"a work, {START_UP:.0f} s until a node has begun, and 10 Gbit/s.",
        soft_wrap=True,
    )


def print_estimate(found: Estimate, console: Console) -> None:
    """Splits, proxies, works and cells; time by part; memory and disk."""
    lines = [
        [split_label(s.name), s.role, *(f"{n:,}" if n else "–" for n in s[2:])]
        for s in found.splits
    ]
    heads = ["split", "role", "sequences", "scored", "tokens"]
    console.print(_table("What would be used", heads, lines, words=2))
    methods = ", ".join(f"{number} {escape(name)}" for name, number in found.methods.items())
    size = "" if found.parameters is None else f" of {found.parameters:,} parameters"
    models = f"{found.seeds} model{'s' if found.seeds > 1 else ''}{size}"
    proxies = sum(found.methods.values())
    console.print(f"{models}, {proxies} proxies ({methods})", soft_wrap=True)
    console.print(f"{found.works:,} works with {found.cells:,} cells in all", soft_wrap=True)
    lines = [[part.part, _time(part.seconds), part.measured] for part in found.took]
    console.print(_table("Time, one after the other", ["part", "about", "measured on"], lines, 3))
    together = f", {found.workers} models at a time" if found.workers > 1 else ""
    most = " at most, as cells stop early" if found.early else ""
    console.print(f"[bold]About {_time(found.seconds)}{together}{most}.[/]", soft_wrap=True)
    memory = "" if found.memory is None else f"Memory: about {_bytes(found.memory)}. "
    if found.device_memory is not None:
        memory += f"On the device: about {_bytes(found.device_memory)}. "
    console.print(f"{memory}Disk: about {_bytes(found.disk)}.", soft_wrap=True)
    load = found.load
    console.print(
        f"A work: about {_seconds(sum(load.seconds) / len(load.seconds))} with "
        f"{_count(load.threads, 'thread')}, {_bytes(load.memory)} of memory, "
        f"{_bytes(load.result_bytes)} given back. To a node once: {_bytes(load.node_bytes)}.",
        soft_wrap=True,
    )
    if found.flops is not None:
        parts = {name: n for name, n in found.flops._asdict().items() if n}
        told = ", ".join(f"{name} {_operations(n)}" for name, n in parts.items())
        console.print(f"Operations: {told}.", soft_wrap=True)


def _table(title: str, heads: Sequence[str], lines: Sequence[Sequence[str]], words: int) -> Table:
    """A table whose first so many columns are words, and the others numbers."""
    table = Table(title=title)
    for place, head in enumerate(heads):
        table.add_column(head, justify="left" if place < words else "right")
    for line in lines:
        table.add_row(*map(escape, line))
    return table


def _time(seconds: float) -> str:
    """Such as "40 s", "4 min" or "2.5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _seconds(seconds: float) -> str:
    """Such as "0.25 s", or as `_time`."""
    return f"{seconds:.2g} s" if seconds < 10 else _time(seconds)


def _count(number: int, noun: str) -> str:
    """Such as "1 thread" or "2 threads"."""
    return f"{number} {noun}{'s' if number != 1 else ''}"


def _operations(number: float) -> str:
    """Such as "820 GFlop" or "1.5 PFlop"."""
    for power, unit in ((18, "E"), (15, "P"), (12, "T"), (9, "G")):
        if number >= 10**power:
            return f"{number / 10**power:.3g} {unit}Flop"
    return f"{number / 1e6:.3g} MFlop"


def _bytes(number: float) -> str:
    """Such as "40 kB", "820 MB" or "1.5 GB"."""
    if number < 1e6:
        return f"{number / 1e3:.0f} kB"
    return f"{number / 1e6:.0f} MB" if number < 1e9 else f"{number / 1e9:.1f} GB"
