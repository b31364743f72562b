"""Law 11: the user's process is left as it was found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from commands import environment

TESTS = Path(__file__).parent / "helpers"
FUNCTIONS = (
    *("load_task", "train", "Decoder.load", "audit", "audit_given", "load_pretrained", "text_task"),
    *("list_sites", "check_model", "check_simplification", "train_study", "run_study"),
    *("run_study, two workers", "run_study, complete", "audit_study", "load_run", "render"),
)
IMPORT = """
import json, logging, os, random, signal, sys, threading, warnings
import numpy, polars, torch
{first}
def now():
    import multiprocessing
    return repr([
        sorted(os.environ.items()), list(warnings.filters), warnings.showwarning,
        torch.get_num_threads(), torch.get_rng_state().tolist(), random.getstate(),
        numpy.random.get_state(), torch.get_default_dtype(), torch.is_grad_enabled(),
        [signal.getsignal(s) for s in signal.valid_signals()],
        logging.root.level, logging.root.handlers, os.getcwd(), sys.path, sys.excepthook,
        threading.enumerate(), multiprocessing.get_start_method(allow_none=True),
        polars.Config.state(), torch.get_float32_matmul_precision(),
    ])
torch.set_num_threads(3)
before = now()
import anamorph
{then}
after = now()
print(before == after, sorted({{"sklearn", "scipy", "altair"}} & set(sys.modules)))
"""


def test_importing_changes_nothing() -> None:
    """Beyond what torch, NumPy and polars do; and it does not import what takes long."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT.format(first="", then="")],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("True []\n", "")


def test_importing_the_command_line_changes_nothing() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            IMPORT.format(first="import altair, typer, rich.console", then="import anamorph.cli"),
        ],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("True "), done.stderr


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    pytest.importorskip("transformers")
    done = subprocess.run(
        [sys.executable, TESTS / "guest.py", tmp_path_factory.mktemp("guest")],
        env=environment()
        | {"PYTHONPATH": os.pathsep.join([environment()["PYTHONPATH"], str(TESTS)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    print(done.stderr)
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_leaves_the_process_as_it_was(
    changed: dict[str, list[str]], function: str
) -> None:
    assert changed[function] == []


@pytest.mark.slow
def test_every_function_was_asked(changed: dict[str, list[str]]) -> None:
    assert set(changed) == set(FUNCTIONS)
