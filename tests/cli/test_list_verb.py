"""`anamorph list`, and what `--dry-run` refuses."""

from pathlib import Path
from typing import Any

import pytest

from anamorph.studies.specification import StudySpec, load_preset


def test_a_preset_is_printed_as_a_file_that_run_takes(anamorph: Any, tmp_path: Path) -> None:
    import tomllib

    done = anamorph("list", "dyck-smoke")
    assert done.code == 0
    assert StudySpec.of(tomllib.loads(done.out), "it") == load_preset("dyck", "smoke")
    wrong = anamorph("list", "dyck-smok")
    assert wrong.code == 2 and "there are: " in wrong.error and "dyck-smoke" in wrong.error


@pytest.mark.parametrize("steps", ["300", "301"])
def test_a_dry_run_is_refused_where_the_run_would_be(
    anamorph: Any, smoke_run: Path, steps: str
) -> None:
    given = ("--preset", "smoke", "--set", f"training.steps={steps}", "--out", smoke_run)
    before = {path: path.stat().st_mtime_ns for path in smoke_run.rglob("*")}
    done = anamorph("run", "dyck", *given, "--dry-run")
    if steps == "300":
        assert done.code == 0 and "Nothing was written." in done.out
    else:
        assert done.code == 3 and "training.steps: there 300, asked 301" in done.error
    assert {path: path.stat().st_mtime_ns for path in smoke_run.rglob("*")} == before
