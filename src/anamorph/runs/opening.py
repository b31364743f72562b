"""Begin a run, or go on with one, as the only process that works in its folder."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from anamorph.errors import AnamorphError, RunFolderError
from anamorph.files import write_json
from anamorph.runs.comparing import changed_plugins, differences, with_plugins
from anamorph.runs.environment import environment, warn_of_untold, warn_of_versions
from anamorph.runs.folder import Run, load_run
from anamorph.runs.held import CLOCK, held
from anamorph.runs.holder import HOLDER, LOCK
from anamorph.store import Address, address_of
from anamorph.version import version

LAYOUT = 2  # of the files of an unfinished run; raised whenever older ones cannot be resumed
MOST_DIFFERENCES = 6  # between two specifications, that an error names
BEGUN = (
    *(".spec.json.*.tmp", f".{HOLDER}.*.tmp", LOCK, HOLDER, CLOCK),
    *(".DS_Store", "Thumbs.db", "desktop.ini"),  # which file managers put into any folder
)
"""All that may lie in a folder where a run was killed at once."""


@contextmanager
def open_run(path: Address | str, spec: Mapping[str, Any]) -> Iterator[Run]:
    """Begin a run, or go on with one of the same specification, as its only process.

    A complete run is given as it is.

    Args:
        path: the run folder.
        spec: everything that numbers depend on, with `fingerprints`; JSON values only.

    Raises:
        RunFolderError: if the folder holds a run of another specification, model, data or version
            (named), or other files; if another process works in it; or if it cannot be written to.

    Warns:
        UserWarning: if the run goes on with other versions of packages than it was begun with, or
            is of a version that cannot tell what simplifications of others were made of.
    """
    path = address_of(path)
    spec = _as_json({"anamorph": version(), "layout": LAYOUT, **spec})
    run = _existing(path, spec)
    if run is not None and run.complete:
        warn_of_untold(run)
        yield run
        return
    with held(path) as path:
        run = _existing(path, spec)
        if run is None:
            full = {**spec, "environment": environment()}
        else:
            full = _of_this_layout(run, spec)
            warn_of_versions(run)
        if run is None or full != load_run(path).spec:  # as it lies there
            write_json(path / "spec.json", full)
        run = Run(path, full)
        sweep(path)
        yield run


def sweep(path: Address) -> None:
    """Delete what is left of writes that were killed; in a store there is nothing."""
    for leftover in path.rglob(".*.tmp") if isinstance(path, Path) else ():
        leftover.unlink(missing_ok=True)


def check_folder(path: Address | str, spec: Mapping[str, Any]) -> None:
    """Whether a folder could take a run, or go on with its own; writes nothing.

    Args:
        path: the run folder.
        spec: as for `open_run`.

    Raises:
        RunFolderError: if it holds a run of another specification (named), or other files.
    """
    _existing(address_of(path), _as_json({"anamorph": version(), "layout": LAYOUT, **spec}))


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


def _existing(path: Address, spec: Mapping[str, Any]) -> Run | None:
    """The run that is there, if there is one, and it is the one that is asked for."""
    if not (path / "spec.json").exists():
        others = [f for f in path.glob("*") if not any(fnmatch(f.name, name) for name in BEGUN)]
        if path.is_file() or others:
            raise RunFolderError(
                f"{path} exists and holds no run (it has no spec.json); give an empty or new "
                "folder."
            )
        return None
    run = load_run(path)
    made = _made_with_plugins(run)
    if changed_plugins(run.spec, spec) and not made:
        run = Run(path, with_plugins(run.spec, spec))
    found = differences(run.spec, spec)
    if changed_plugins(run.spec, spec) and not differences(with_plugins(run.spec, spec), spec):
        raise AnamorphError(
            f"{path} holds what was made with other plugins ({'; '.join(found)}). Delete "
            f"{', '.join(map(str, made))}, and the same command goes on from its models; or give "
            "another --out."
        )
    if found:
        what = "; ".join(found[:MOST_DIFFERENCES])
        if len(found) > MOST_DIFFERENCES:
            what += f"; and {len(found) - MOST_DIFFERENCES} more"
        raise RunFolderError(
            f"{path} holds a run of another specification ({what}). Give another --out, or "
            "delete that folder."
        )
    return run


def _made_with_plugins(run: Run) -> list[Address]:
    """What there is of a run that plugins may have had a part in: all but its models."""
    files = ("simplifications.safetensors", "works", "sites.parquet")
    found = [run.seed(seed) / name for seed in run.seeds for name in files]
    return [path for path in (*found, run.report) if path.exists()]


def _of_this_layout(run: Run, spec: Mapping[str, Any]) -> dict[str, Any]:
    """What an unfinished run says of itself, with what its version did not say yet.

    Args:
        run: of the same specification but for its layout, and what follows from the specification.
        spec: as for `open_run`.

    Raises:
        RunFolderError: if its files are not laid out as they are now; models always are.
    """
    if run.spec.get("layout") == LAYOUT:
        return {**spec, **run.spec}
    old = [*run.path.glob("seed-*/simplifications.safetensors"), *run.path.glob("seed-*/works")]
    if old:
        raise RunFolderError(
            f"The run in {run.path} was begun by an earlier version of anamorph, which laid out "
            f"its files in another way. Delete {', '.join(map(str, old))}, and the same command "
            "goes on from its models; or give another --out."
        )
    now = {"layout": LAYOUT, "fingerprints": spec["fingerprints"]}
    return {**spec, **run.spec, **now}
