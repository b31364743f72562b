"""Progress in a notebook: bars where IPython's kernel runs, nothing in a script."""

import sys
import types
from collections.abc import Mapping
from html.parser import HTMLParser
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import anamorph as am
from anamorph.progress import Event, ignore
from anamorph.progress import bars as module
from anamorph.progress.bars import MOST, Bars
from anamorph.progress.watching import in_notebook, watching
from anamorph.tasks import Task


class ZMQInteractiveShell:
    """Named as the shell of IPython's kernel."""


class Colab(ZMQInteractiveShell):
    """Colab's is one of these."""


class TerminalInteractiveShell:
    """Named as IPython's in a terminal."""


class Handle:
    """What IPython's `display` gives for an output that can be replaced."""

    def __init__(self, shown: list[Mapping[str, str]]) -> None:
        self.shown = shown

    def update(self, bundle: Mapping[str, str], raw: bool) -> None:
        assert raw
        self.shown.append(bundle)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, str]]:
    """What a pretended notebook was shown, the first as a new output, the rest in its place."""
    found: list[Mapping[str, str]] = []

    def display(bundle: Mapping[str, str], raw: bool, display_id: bool) -> Handle:
        assert raw and display_id and not found, "one output, replaced from then on"
        found.append(bundle)
        return Handle(found)

    ipython: Any = types.ModuleType("IPython")
    ipython.get_ipython = ZMQInteractiveShell
    displays: Any = types.ModuleType("IPython.display")
    displays.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", displays)
    return found


class Texts(HTMLParser):
    """The texts of cells, and the attributes of bars."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.bars: list[dict[str, str | None]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("table", "tr", "td", "progress")
        if tag == "progress":
            self.bars.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_bars_show_in_a_kernel_alone(
    shown: list[Mapping[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ipython: Any = sys.modules["IPython"]
    for shell, expected in ((ZMQInteractiveShell, True), (Colab, True), (lambda: None, False)):
        ipython.get_ipython = shell
        assert in_notebook() == expected
    ipython.get_ipython = TerminalInteractiveShell
    with watching(None) as watch:
        watch(Event("training", 1, 2))
    monkeypatch.delitem(sys.modules, "IPython")
    assert not in_notebook()
    assert not shown and watch is ignore


def test_a_watch_that_is_given_is_the_one_that_is_told(shown: list[Mapping[str, str]]) -> None:
    with watching(ignore) as watch:
        assert watch is ignore
    assert not shown


def test_what_bars_say(shown: list[Mapping[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with watching(None) as watch:
        watch(Event("<training>", 100, 1000, "loss <3>"))
        now = 0.1
        watch(Event("<training>", 150, 1000))  # too soon to be drawn
        now = 10.0
        watch(Event("<training>", 300, 1000, "loss 2"))
        watch(Event("<training>", 1000, 1000, "loss 1"))
        watch(Event("audit", 1, 4))
    assert len(shown) == 3, "the first, one after 10 s, and the last"
    first, middle, last = (Texts(bundle["text/html"]) for bundle in shown)
    assert first.texts == ["<training>", "100 of 1,000", "0 s", "loss <3>"]
    assert first.bars[0] == {
        "aria-label": "<training>", "value": "100", "max": "1000", "style": "width:10em",
    }  # fmt: skip
    # 200 in 10 seconds, so 700 in 35
    assert middle.texts == ["<training>", "300 of 1,000", "10 s, 35 s left", "loss 2"]
    assert last.texts == ["<training>", "✓", "1,000", "10 s", "loss 1", "audit", "1 of 4", "0 s"]
    assert len(last.bars) == 1, "what is done has none"
    assert shown[-1]["text/plain"] == "<training>: done in 10 s\naudit: 1 of 4"


def test_of_many_steps_the_last_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 0.0)
    found: list[Mapping[str, str]] = []
    bars = Bars(found.append)
    for number in range(MOST + 3):
        bars(Event(f"step {number}", 1, 1))
    texts = Texts(found[-1]["text/html"]).texts
    assert texts[0] == "3 steps before" and texts[1] == "step 3"


def test_every_long_call_takes_the_same_watch(task: Task, shown: list[Mapping[str, str]]) -> None:
    events: list[Event] = []
    config = am.TrainingConfig(steps=2, batch_tokens=64)
    am.load_task("dyck", k=2, m=2, train=20, test=5, max_length=20, watch=events.append)
    model, _ = am.train(task, config=config, watch=events.append)
    am.audit(model, task, "svd(rank=1)@1.*.key", watch=events.append)
    assert list(dict.fromkeys(event.step for event in events)) == ["training", "fitting", "audit"]
    for step in ("training", "fitting", "audit"):
        done = [event for event in events if event.step == step]
        assert done[-1].done == done[-1].total
    assert not shown
    am.train(task, config=config)
    assert shown[-1]["text/plain"].startswith("training: done in ")


def test_a_notebook_shows_bars_and_what_was_found() -> None:
    """In a kernel as it is, with everything that a cell gives back."""
    cell = """
import anamorph as am
task = am.load_task("dyck", k=2, m=2, train=60, test=10, max_length=20)
model, curves = am.train(task, config=am.TrainingConfig(steps=3, batch_tokens=64))
am.audit(model, task, "svd(rank=1)@1.*.key")
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    texts = ["".join(output["data"]["text/plain"]) for output in outputs]
    assert [text.split(":")[0] for text in texts] == ["training", "fitting", "Audit"]
    assert "audit: done in" in texts[1] and "done in" in texts[0]
    assert "<table" in outputs[-1]["data"]["text/html"]
    assert {output["output_type"] for output in outputs} == {"display_data", "execute_result"}
