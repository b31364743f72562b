"""Work in other processes: what comes home, how it ends, and what it does not need."""

import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

import anamorph as am
import far_away
from anamorph.machine.workers import apart
from anamorph.progress import Event
from commands import SOURCE, environment


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def began(folder: Path) -> list[int]:
    return [int(file.stem) for file in folder.glob("*.began")]


def wait_for(condition: object, seconds: float = 30) -> None:
    start = time.monotonic()
    while not condition():  # type: ignore[operator]
        assert time.monotonic() - start < seconds
        time.sleep(0.02)


def test_what_is_returned_and_told() -> None:
    events: list[Event] = []
    found = list(apart([partial(far_away.double, n) for n in range(5)], 2, events.append))
    assert sorted(found) == [0, 2, 4, 6, 8]
    assert {event.done for event in events} == {0, 1, 2, 3, 4}


def test_workers_are_few_and_stay() -> None:
    found = list(apart([far_away.identify] * 6, 2))
    assert 1 <= len({pid for pid, _, _ in found}) <= 2
    assert os.getpid() not in {pid for pid, _, _ in found}
    assert {folder for _, folder, _ in found} == {os.getcwd()}
    assert {main for _, _, main in found} == {"none"}  # not the caller's
    assert not any(alive(pid) for pid, _, _ in found)


def test_what_is_printed_does_not_stand_among_the_answers(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert list(apart([far_away.chatter], 1)) == [""]
    out, error = capfd.readouterr()
    assert out == ""
    assert "a library prints" in error and "and another, in C" in error


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("error", am.AnamorphError, r"Seed 1: no\."),
        ("bug", KeyError, "a bug"),
        ("exit", SystemExit, "3"),
        ("killed", am.AnamorphError, r"killed from outside \(SIGKILL\).*memory.*fewer workers"),
        ("gone", am.AnamorphError, "ended with code 5"),
    ],
)
def test_a_failure_ends_all_at_once(
    how: str, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    calls = [
        partial(far_away.fail_when, tmp_path, 1, how),
        partial(far_away.wait, 60, tmp_path),
        partial(far_away.wait, 60, tmp_path),  # not even begun
    ]
    start = time.monotonic()
    with pytest.raises(kind, match=message) as raised:
        list(apart(calls, 2))
    assert time.monotonic() - start < 30
    assert len(began(tmp_path)) == 1
    assert not any(map(alive, began(tmp_path)))
    if how == "bug":  # where it was raised, in the other process
        assert "in fail_when" in str(raised.value.__cause__)


def test_a_worker_that_is_busy_in_c_ends_too(tmp_path: Path) -> None:
    calls = [
        partial(far_away.fail_when, tmp_path, 1, "error"),
        partial(far_away.wait_in_c, 60, tmp_path),
    ]
    start = time.monotonic()
    with pytest.raises(am.AnamorphError):
        list(apart(calls, 2))
    assert time.monotonic() - start < 30
    assert not any(map(alive, began(tmp_path)))


def test_an_exception_that_cannot_travel_is_told() -> None:
    with pytest.raises(RuntimeError, match="oddness"):
        list(apart([far_away.raise_odd], 1))
    with pytest.raises(AttributeError, match="pickle"):
        list(apart([partial(far_away.give, "x")], 1))


def test_the_caller_may_stop_at_any_time(tmp_path: Path) -> None:
    calls = [partial(far_away.double, 1), partial(far_away.wait, 60, tmp_path)]
    with closing(apart(calls, 2)) as answers:
        assert next(answers) == 2
        wait_for(lambda: began(tmp_path))
    assert not any(map(alive, began(tmp_path)))


def test_an_error_of_who_watches_ends_all(tmp_path: Path) -> None:
    def watch(event: Event) -> None:
        raise ValueError("enough")

    calls = [partial(far_away.double, 1), partial(far_away.wait, 60, tmp_path)]
    with pytest.raises(ValueError, match="enough"):
        list(apart(calls, 2, watch))
    assert not any(map(alive, began(tmp_path)))


def test_warnings_come_home_once() -> None:
    calls = [
        partial(far_away.warn, "few points", UserWarning),
        partial(far_away.warn, "few points", UserWarning),
        partial(far_away.warn, "few points", RuntimeWarning),
        partial(far_away.warn, "other", UserWarning),
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        list(apart(calls, 2))
    assert sorted((str(w.message), w.category.__name__) for w in caught) == [
        ("few points", "RuntimeWarning"),
        ("few points", "UserWarning"),
        ("other", "UserWarning"),
    ]
    assert {Path(w.filename).name for w in caught} == {"far_away.py"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="few points"):
            list(apart(calls[:1], 1))


CALLER = """
    import signal, sys
    from functools import partial
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    print("this script runs", flush=True)
    import far_away
    from anamorph.machine.workers import apart
    if sys.argv[2] == "double":
        print(sorted(apart([partial(far_away.double, n) for n in range(3)], 2)))
    else:
        list(apart([partial(far_away.wait, 60, Path(sys.argv[2]))] * 2, 2))
"""
TESTS = str(Path(__file__).parents[1] / "helpers")


@pytest.mark.parametrize("how", ["file", "input"])
def test_a_script_needs_no_main_guard(how: str, tmp_path: Path) -> None:
    code = textwrap.dedent(CALLER)
    script = tmp_path / "script.py"
    script.write_text(code)
    start = {"file": [str(script)], "input": ["-"]}[how]
    done = subprocess.run(
        [sys.executable, *start, TESTS, "double"],
        input=code,
        env={k: v for k, v in environment().items() if k != "PYTHONPATH"}
        | {"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("this script runs\n[0, 2, 4]\n", "")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_none_is_left_when_the_caller_ends(how: signal.Signals, tmp_path: Path) -> None:
    """SIGINT as a terminal sends it: to all."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CALLER), TESTS, str(tmp_path)],
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: len(began(tmp_path)) == 2)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    _, error = process.communicate(timeout=20)
    assert error.count("Traceback") == (how == signal.SIGINT)  # the caller's own, none of workers
    wait_for(lambda: not any(map(alive, began(tmp_path))), 5)
    assert not list(tmp_path.glob("*.ended"))
