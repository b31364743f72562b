"""Bars of progress as HTML, for a notebook."""

import time
from collections.abc import Callable, Mapping

from markupsafe import Markup

from anamorph.progress import Event
from anamorph.progress.steps import Step, duration
from anamorph.showing import html, joined

EVERY = 0.25  # seconds between two drawings
MOST = 8  # steps that are shown; of those before, their number
SOFT = "opacity:.8"
CELL = "padding:1px 12px 1px 0;border:0;text-align:left;background:none;white-space:nowrap"


class Bars:
    """A bar a step, with its time; what is done turns into a line.

    Args:
        show: shows text by its type, such as `text/html`, in place of what it showed before.
    """

    def __init__(self, show: Callable[[Mapping[str, str]], None]) -> None:
        self._show = show
        self._steps: dict[str, Step] = {}
        self._took: dict[str, float] = {}  # seconds, of what is done
        self._drawn = -EVERY

    def __call__(self, event: Event) -> None:
        """Take in how far a step is; draw unless that was just done."""
        step = self._steps.setdefault(event.step, Step(event, event))
        step.last = event
        if event.done >= event.total:
            self._took.setdefault(event.step, step.seconds)
        if time.monotonic() - self._drawn >= EVERY:
            self._draw()

    def close(self) -> None:
        """Draw what came last."""
        if self._steps:
            self._draw()

    def _draw(self) -> None:
        steps = list(self._steps.values())
        before, shown = steps[:-MOST], steps[-MOST:]
        rows = [self._row(step) for step in shown]
        if before:
            words = f"{len(before)} step{'s' if len(before) > 1 else ''} before"
            rows.insert(0, html('<tr><td style="{}">{}</td></tr>', CELL, words))
        body = joined(rows)
        table = html('<table style="border-collapse:collapse;margin:0">{}</table>', body)
        lines = [self._line(step) for step in steps]
        self._show({"text/html": str(table), "text/plain": "\n".join(lines)})
        self._drawn = time.monotonic()

    def _row(self, step: Step) -> Markup:
        name, done, total = step.last[:3]
        took = self._took.get(name)
        if took is not None:
            bar, count, when = html("&#10003;"), f"{total:,}", duration(took)
        else:
            bar = html(
                '<progress aria-label="{}" value="{}" max="{}" style="width:10em"></progress>',
                *(name, done, max(1, total)),
            )
            count = f"{done:,} of {total:,}"
            when = duration(step.seconds) + (f", {step.left} left" if step.left else "")
        cells = [(CELL, name), (CELL, bar), (CELL, count), (CELL, when)]
        cells.append((f"{CELL};{SOFT}", step.last.note))
        columns = joined(html('<td style="{}">{}</td>', *cell) for cell in cells)
        return html('<tr style="background:none">{}</tr>', columns)

    def _line(self, step: Step) -> str:
        took = self._took.get(step.last.step)
        return str(step) if took is None else f"{step.last.step}: done in {duration(took)}"
