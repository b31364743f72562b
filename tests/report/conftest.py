import shutil
from pathlib import Path

import pytest

from anamorph.report import render
from synthetic_run import make_run


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with its report; tests must not change it."""
    run = make_run(tmp_path_factory.mktemp("runs") / "rendered")
    render(run)
    return run


@pytest.fixture
def copied(rendered: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(rendered, tmp_path / "run"))
