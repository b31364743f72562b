"""`--dry-run`: what a study would do and take, in the terminal."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anamorph.analysis.words import split_label
from anamorph.cli.console import stdout
from anamorph.runs.opening import check_folder
from anamorph.store import Address
from anamorph.studies.dry_run import Estimate, estimate
from anamorph.studies.sources import Study

DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Only tell what would be done, and what it takes, by a little of it; write nothing.",
    ),
]


def tell(study: Study, folder: Address | str, workers: int | None = None) -> None:
    """Estimate a study, and print it.

    Raises:
        RunFolderError: if the study itself would be refused in that run folder.
    """
    check_folder(folder, study.describe())
    print_estimate(estimate(study, workers), stdout())


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
    console.print("Nothing was written.")


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


def _bytes(number: float) -> str:
    """Such as "820 MB" or "1.5 GB"."""
    return f"{number / 1e6:.0f} MB" if number < 1e9 else f"{number / 1e9:.1f} GB"
