"""What is said of progress where there is no terminal; and how the command line is ended."""

import io
import os
import re
import signal
import subprocess
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import anamorph as am
from anamorph.cli.progress import shown
from anamorph.progress import Event
from anamorph.progress.steps import Step
from commands import SMOKE, environment

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "


def said(events: list[Event], every: float = 60, pause: float = 0) -> list[str]:
    """The lines that are printed of events, `pause` seconds apart."""
    file = io.StringIO()
    with shown(Console(file=file, width=40), every) as watch:
        for event in events:
            watch(event)
            time.sleep(pause)
    lines = file.getvalue().splitlines()
    assert all(re.match(STAMP, line) for line in lines), lines
    return [re.sub(STAMP, "", line) for line in lines]


def test_a_line_as_a_step_begins_and_ends() -> None:
    steps = [Event("seed 0: training", i, 1000, "a long note " * 9) for i in range(1, 1001)]
    first, last = said(steps)
    assert first.startswith("seed 0: training: 1 of 1,000 (a long note ")  # in one line
    assert last.startswith("seed 0: training: done (a long note")


def test_a_line_a_while_with_what_is_done_and_the_rate() -> None:
    """20 of 1,000 every 0.05 seconds are 400 a second at most."""
    lines = said([Event("audit", i, 1000) for i in range(0, 201, 20)], every=0.12, pause=0.05)
    assert lines[0] == "audit: 0 of 1,000"
    assert 2 <= len(lines) - 1 <= 5
    for line in lines[1:]:
        found = re.fullmatch(r"audit: (\d+) of 1,000, ([\d.]+)/s, (\d+) s left", line)
        assert found, line
        done, rate, left = map(float, found.groups())
        assert done % 20 == 0 and 50 < rate < 401
        assert left == pytest.approx((1000 - done) / rate, abs=0.6)


def test_a_step_without_a_word_is_seen_too() -> None:
    lines = said([Event("fitting", 0, 1)], every=0.1, pause=0.35)
    assert set(lines) == {"fitting: 0 of 1"} and len(lines) >= 3


def test_what_lies_between_steps_is_seen_too() -> None:
    """Such as the start of worker processes."""
    lines = said([Event("task", 3, 3)], every=0.1, pause=0.35)
    assert lines[0] == "task: done"
    assert set(lines[1:]) == {"between two steps"} and len(lines) >= 3


def test_steps_side_by_side_and_square_brackets() -> None:
    lines = said(
        [
            Event("seed 0", 1, 9),
            Event("seed 1 [x]", 1, 9, "[y]"),
            Event("seed 0", 9, 9),
            Event("seed 1 [x]", 9, 9),
            Event("report", 1, 1),
        ]
    )
    assert lines == [
        "seed 0: 1 of 9",
        "seed 1 [x]: 1 of 9 ([y])",
        "seed 0: done",
        "seed 1 [x]: done",
        "report: done",
    ]


def test_slow_steps_have_rates_a_minute_and_an_hour() -> None:
    step = Step(*2 * [Event("slow", 0, 100)], since=time.monotonic() - 6000)
    step.last = Event("slow", 50, 100)
    assert str(step) == "slow: 50 of 100, 30/h, 1.7 h left"
    step.last = Event("slow", 1000, 1100)
    assert str(step) == "slow: 1,000 of 1,100, 10/min, 10 min left"


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_log_of_a_command_that_is_ended(how: signal.Signals, tmp_path: Path) -> None:
    """What was said is there, also if colours are asked for, as in CI; what was made is kept."""
    out = tmp_path / "run"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*SMOKE, "--out", out, "--set", "training.steps=100000", "--workers", "1"],
            env=environment() | {"FORCE_COLOR": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        while not list(out.glob("seed-0/checkpoint.safetensors")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(how)
        code = process.wait(30)
    text = re.sub("\x1b" + r"\[[\d;]*m", "", (tmp_path / "log").read_text())
    lines = text.splitlines()
    assert re.fullmatch(STAMP + r"seed 0: training: 1 of 100,000 \(.*\)", lines[0])
    assert "━" not in text and "Traceback" not in text
    assert list(out.glob("seed-0/checkpoint.safetensors"))
    if how == signal.SIGKILL:
        assert (code, len(lines)) == (-9, 1)
    else:
        assert (code, lines[1:]) == (
            128 + how,
            ["Stopped. The same command goes on from here."],
        )


def test_the_command_leaves_the_process_as_it_was(anamorph: Any, tmp_path: Path) -> None:
    def now() -> list[object]:
        signals = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
        return [dict(os.environ), warnings.showwarning, list(warnings.filters), *signals]

    for arguments, code in ((("list",), 0), (("show", tmp_path), 2), (("nonsense",), 2)):
        before = now()
        assert anamorph(*arguments).code == code
        assert now()[1:] == before[1:]


def test_version(anamorph: Any) -> None:
    done = anamorph("--version")
    assert (done.code, done.out) == (0, f"{am.__version__}\n")
    assert re.match(r"\d+\.\d+", am.__version__)
