"""Begin a run, or go on with one: who holds the folder, and whether it holds what is asked for.

A number in a run folder belongs to the weights, the data and the version in its `spec.json`. So
nothing that lies there is used before all of that is compared with what there is now.
"""

import json
import os
import platform
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from anamorph.errors import AnamorphError
from anamorph.models.fingerprint import close_logits, differing
from anamorph.runs.folder import Run, load_run, write_json
from anamorph.tasks import Task
from anamorph.version import version

PLACES = {"task": ("data", "tokenizer"), "model": ("name",)}
MOST_DIFFERENCES = 6  # between two specifications, that an error names
LOCK, HOLDER = ".lock", ".holder.json"
OF_SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini")  # that file managers put into any folder
FREE = ("about", "choices", "environment", "source")
"""What may differ. Choices, and what is said of the task, follow from the rest, in words that may
be mended; versions of other packages are told; where a model or data came from is not what they
are."""
PACKAGES = (
    "torch",
    "numpy",
    "polars",
    "scikit-learn",
    "safetensors",
    "transformers",
    "tokenizers",
    "gguf",
    "tree-sitter",
)


@contextmanager
def open_run(path: Path | str, spec: Mapping[str, Any]) -> Iterator[Run]:
    """Begin a run, or go on with one of the same specification, as its only process.

    A complete run is given as it is.

    Args:
        path: the run folder.
        spec: everything that numbers depend on, with `fingerprints`; JSON values only.

    Raises:
        AnamorphError: if the folder holds a run of another specification, model, data or version
            (named), or other files; if another process works in it; or if it cannot be written to.

    Warns:
        UserWarning: if the run goes on with other versions of packages than it was begun with.
    """
    path = Path(path)
    spec = _as_json({"anamorph": version(), **spec})
    run = _existing(path, spec)
    if run is not None and run.complete:
        yield run
        return
    with _held(path):
        run = _existing(path, spec)
        if run is None:
            full = {**spec, "environment": environment()}
            write_json(path / "spec.json", full)
            run = Run(path, full)
        else:
            _tell_of_versions(run)
        for leftover in path.rglob(".*.tmp"):  # of a write that was killed
            leftover.unlink(missing_ok=True)
        yield run


def _as_json(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The specification as it will be read again."""
    try:
        return json.loads(json.dumps(spec))  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise AnamorphError(
            f"What describes the run cannot be written as JSON ({error}). The spec of a task and "
            "what a model's describe() gives must hold texts, numbers, lists and dictionaries of "
            "these."
        ) from error


def _existing(path: Path, spec: Mapping[str, Any]) -> Run | None:
    """The run that lies there, if there is one, and it is the one that is asked for."""
    if not (path / "spec.json").exists():
        if path.is_file() or (path.is_dir() and not _only_begun(path)):
            raise AnamorphError(
                f"{path} exists and holds no run (it has no spec.json); give an empty or new "
                "folder."
            )
        return None
    run = load_run(path)
    found = _differences(run.spec, spec)
    if found:
        what = "; ".join(found[:MOST_DIFFERENCES])
        if len(found) > MOST_DIFFERENCES:
            what += f"; and {len(found) - MOST_DIFFERENCES} more"
        raise AnamorphError(
            f"{path} holds a run of another specification ({what}). Give another --out, or "
            "delete that folder."
        )
    return run


def _only_begun(path: Path) -> bool:
    """Whether a folder holds nothing but what a run that was killed at once leaves there."""
    patterns = (".spec.json.*.tmp", f".{HOLDER}.*.tmp", LOCK, HOLDER, *OF_SYSTEMS)
    return all(any(fnmatch(file.name, p) for p in patterns) for file in path.iterdir())


# Who holds the folder


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a run folder; the system lets go of it when the process ends, however it ends."""
    lock = FileLock(path / LOCK, timeout=0)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        write_json(path / HOLDER, _me())
    except Timeout as error:
        raise AnamorphError(
            f"{path} is being worked on by {_holder(path)}. Wait for it, or give another --out."
        ) from error
    except OSError as error:
        reason = error.strerror or error
        raise AnamorphError(
            f"Cannot work in {path}: {reason}. Give a folder that is writable and has room."
        ) from error
    except AnamorphError:  # the disk is full
        lock.release()
        raise
    try:
        yield
    finally:
        (path / HOLDER).unlink(missing_ok=True)
        lock.release()


def _me() -> dict[str, Any]:
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": " ".join(sys.argv)[:200],
    }


def _holder(path: Path) -> str:
    try:
        holder = json.loads((path / HOLDER).read_text("utf-8"))
        return (
            f"process {holder['process']} on {holder['host']} since {holder['since']} "
            f"({holder['command']})"
        )
    except (OSError, ValueError, KeyError, TypeError):  # it has only just begun
        return "another process"


# What must agree


def _differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What of two specifications does not agree, in words."""
    found = []
    # Training is split over threads. An audit is not; where a model is, the run's number is used.
    free = FREE if asked.get("training") else (*FREE, "threads")
    for key in asked:
        if key in free or there.get(key) == asked[key]:
            continue
        if key == "anamorph":
            found.append(f"it was made by anamorph {there.get(key)}, and this is {asked[key]}")
        elif key == "fingerprints":
            found += _of_fingerprints(there.get(key) or {}, asked[key])
        else:
            found += _of_values(key, _unnamed(key, there.get(key)), _unnamed(key, asked[key]))
    return found


def _unnamed(key: str, value: Any) -> Any:
    """A part of a specification without names and places of models and files.

    They are not what these are: that, fingerprints tell.
    """
    if not isinstance(value, dict):
        return value
    value = {k: v for k, v in value.items() if k not in PLACES.get(key, ())}
    if isinstance(value.get("files"), dict):
        value["files"] = list(value["files"].values())
    return value


def _of_values(name: str, there: Any, asked: Any) -> list[str]:
    """Where two parts of a specification differ, as `training.steps: there 60, asked 7`."""
    if there == asked:
        return []
    if isinstance(there, dict) and isinstance(asked, dict):
        keys = dict.fromkeys([*there, *asked])
        return [
            found
            for key in keys
            for found in _of_values(f"{name}.{key}", there.get(key), asked.get(key))
        ]
    return [f"{name}: there {there}, asked {asked}"]


def _of_fingerprints(there: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    found = []
    if weights := _changed(there, asked, "weights"):
        found.append(differing(weights))
    elif (
        "logits" in asked
        and not _changed(there, asked, "data")
        and not close_logits(there.get("logits"), asked["logits"])
    ):
        found.append(
            "the weights are the same, but the model gives other logits than it did: a hook, an "
            "adapter, its configuration or its code differs"
        )
    for name in _changed(there, asked, "data"):
        found.append(f"the data of {name} differ" if name == "candidates" else f"{name!r} differs")
    for name in _changed(there, asked, "models"):
        parts = _changed(there.get("models") or {}, asked.get("models") or {}, name)
        found.append(f"of {name}, {differing(parts)}")
    for name in _changed(there, asked, "simplifications"):
        found.append(f"what {name} reads or holds, or its code, differs")
    return found


def _changed(there: Mapping[str, Any], asked: Mapping[str, Any], kind: str) -> list[str]:
    before, now = there.get(kind) or {}, asked.get(kind) or {}
    return [name for name in {**now, **before} if before.get(name) != now.get(name)]


def check_same(run: Run, weights: Mapping[str, str] | None, task: Task) -> None:
    """Whether data, and a model if its weights are given, are still those of a run.

    Raises:
        AnamorphError: if they are not; names what differs.
    """
    there = run.spec.get("fingerprints") or {}
    now = {**there, "data": task.fingerprints()}
    found = _of_fingerprints(there, now if weights is None else {**now, "weights": weights})
    if found:
        raise AnamorphError(
            f"The model and data of {run.path} are not what they were ({'; '.join(found)}). Bring "
            "the old ones back, or begin a new audit of what there is now."
        )


# Versions


def environment() -> dict[str, Any]:
    """Versions, commit and machine."""
    return {
        "python": platform.python_version(),
        **{name: _installed(name) for name in PACKAGES},
        "commit": _commit(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "processor": torch.backends.cpu.get_cpu_capability(),
    }


def _tell_of_versions(run: Run) -> None:
    before, now = run.spec.get("environment") or {}, environment()
    different = [
        f"{name} {before.get(name)}, now {now[name]}"
        for name in ("python", *PACKAGES, "commit", "processor")
        if name in before and before[name] != now[name]
    ]
    if different:
        warnings.warn(
            f"The run in {run.path} was begun with {'; '.join(different)}. Its numbers may differ "
            "from those of one version alone, by rounding or more.",
            stacklevel=4,
        )


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that this code runs from, if it is one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
