"""A study's progress: bars in a terminal, and lines in a file."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Event as Flag
from threading import Lock, Thread

from rich.console import Console
from rich.markup import escape
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
from anamorph.progress.steps import Step, bracketed

EVERY = 60.0  # seconds between two lines


def shown(console: Console, every: float = EVERY) -> AbstractContextManager[Watch]:
    """Gives what `run_study` calls: shows bars in a terminal, and prints lines elsewhere."""
    return _bars(console) if console.file.isatty() else _lines(console, every)


@contextmanager
def _bars(console: Console) -> Iterator[Watch]:
    """A bar a step, with elapsed and remaining time."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=console,
    ) as progress:
        bars: dict[str, TaskID] = {}

        def watch(event: Event) -> None:
            if event.step not in bars:
                bars[event.step] = progress.add_task(event.step, total=event.total, note="")
            bar = bars[event.step]
            progress.update(bar, completed=event.done, total=event.total, note=event.note)

        yield watch


@contextmanager
def _lines(console: Console, every: float) -> Iterator[Watch]:
    """A line as a step begins or ends, and in between one every so many seconds.

    They are printed from a thread, so that one that takes long without a word is seen too.
    """
    steps: dict[str, Step] = {}
    lock, over = Lock(), Flag()

    def say(text: str) -> None:
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        console.print(f"{now}  {escape(text)}", soft_wrap=True)

    def watch(event: Event) -> None:
        with lock:
            step = steps.get(event.step)
            if event.done >= event.total:
                steps.pop(event.step, None)
                say(f"{event.step}: done{bracketed(event.note)}")
            elif step is None:
                step = steps[event.step] = Step(event, event)
                say(str(step))
            else:
                step.last = event

    def tick() -> None:
        while not over.wait(every):
            with lock:
                for line in [str(step) for step in steps.values()] or ["between two steps"]:
                    say(line)

    thread = Thread(target=tick, name="anamorph: progress", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join()
