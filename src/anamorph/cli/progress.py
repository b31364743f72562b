"""A study's progress in the terminal: a bar a step, with rate and remaining time."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from anamorph.progress import Event, Watch


@contextmanager
def shown(console: Console) -> Iterator[Watch]:
    """Gives what `run_study` calls; where there is no terminal, a line as each step ends."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        bars: dict[str, TaskID] = {}

        def watch(event: Event) -> None:
            if event.step not in bars:
                bars[event.step] = progress.add_task(event.step, total=event.total, note="")
            progress.update(bars[event.step], completed=event.done, note=event.note)
            if event.done == event.total and not console.is_terminal:
                note = f" ({event.note})" if event.note else ""
                console.print(f"{event.step}: done{note}", highlight=False)

        yield watch
