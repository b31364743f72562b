"""`--engine` and `--address` on the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anamorph.auditing.local import Local
from anamorph.cli import options
from commands import Done


@pytest.mark.parametrize("verb", [["run", "dyck", "--preset", "smoke"], ["audit", "nowhere"]])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--engine", "spark"], "--engine must be one of local, ray; got 'spark'"),
        (["--address", "auto"], "--address auto is of a Ray cluster: add --engine ray"),
    ],
)
def test_what_does_not_fit_is_refused(
    anamorph: Callable[..., Done], tmp_path: Path, verb: list[str], given: list[str], said: str
) -> None:
    more = ["--simplify", "onehot@*.*.pattern"] if verb[0] == "audit" else []
    done = anamorph(*verb, *more, "--out", tmp_path / "out", *given)
    assert done.code == 2 and said in " ".join(done.error.split())
    assert not (tmp_path / "out").exists()


def test_the_engine_reaches_the_study(
    anamorph: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def chosen(name: str, address: str | None) -> Local:
        asked.append((name, address))
        return Local()

    monkeypatch.setattr(options, "chosen_engine", chosen)
    settings = ["task.train=200", "task.test=20", "training.steps=5", "training.batch_tokens=256"]
    settings += ["audit.sequences=8", "audit.fit_sequences=20"]
    words = [word for setting in settings for word in ("--set", setting)]
    out = tmp_path / "out"
    command = ["run", "dyck", "--preset", "smoke", *words, "--no-figures", "--out", out]
    done = anamorph(*command, "--engine", "ray", "--address", "10.0.0.1:6379")
    assert done.code == 0, done.error
    assert asked == [("ray", "10.0.0.1:6379")]
    assert "works: done" in done.out, "a step of a spread study"


def test_a_cluster_that_is_not_there_leaves_nothing(
    anamorph: Callable[..., Done], tmp_path: Path
) -> None:
    given = ["--engine", "ray", "--address", "127.0.0.1:1", "--out", tmp_path / "out"]
    done = anamorph("run", "dyck", "--preset", "smoke", *given)
    assert done.code == 2 and "Cannot connect to the Ray cluster 127.0.0.1:1" in done.error
    assert not (tmp_path / "out").exists()
