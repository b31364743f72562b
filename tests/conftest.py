"""What several test files share: a small task, and one finished smoke run."""

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import anamorph as am
import anamorph.cli
from anamorph import report
from anamorph.cli import main
from anamorph.studies import sources
from anamorph.tasks import Task
from chromium import launched
from commands import SMOKE, Done, environment
from synthetic_run import make_run

if not torch.cuda.is_available():  # Triton reads it when it is imported, whoever does so first
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def task() -> Task:
    return am.load_task("dyck", k=3, m=3, train=300, test=30, max_length=50)


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished smoke run; not to be changed."""
    folder = tmp_path_factory.mktemp("smoke") / "run"
    done = subprocess.run(
        [*SMOKE, "--out", folder], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with its report; tests must not change it."""
    run = make_run(tmp_path_factory.mktemp("runs") / "rendered")
    report.render(run)
    return run


@pytest.fixture
def copied(rendered: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(rendered, tmp_path / "run"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium by Playwright; ended with the file, as it keeps an event loop for itself."""
    with launched() as started:
        yield started


@pytest.fixture(scope="session")
def _serving() -> Iterator[tuple[Any, dict[str, str]]]:
    from store_server import serving  # here: moto takes two seconds to import

    with serving() as server:
        yield server


@pytest.fixture
def store(_serving: tuple[Any, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An S3 server on this machine with an empty bucket; see `store_server.Server`."""
    from s3fs import S3FileSystem

    server, where = _serving
    for name, value in where.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    server.empty()
    yield server
    server.fail(type(server.faults)())
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def task_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies make a task once, as the same arguments always give the same."""
    monkeypatch.setattr(
        sources, "load_task", lambda watch=None, **kw: _made(json.dumps(kw, sort_keys=True))
    )


@functools.cache
def _made(arguments: str) -> Task:
    return am.load_task(**json.loads(arguments))


@pytest.fixture
def quick_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report without figures: drawing takes longer than all the rest, and has its own tests."""

    def render(run: Path, figures: object = None) -> Path:
        (run / "report.html").write_text("a report")
        return run / "report.html"

    monkeypatch.setattr(report, "render", render)
    monkeypatch.setattr(import_module("anamorph.cli.report"), "render", render)


@pytest.fixture
def anamorph(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command line in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["anamorph", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return run
