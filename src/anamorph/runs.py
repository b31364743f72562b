"""The run folder: what a study leaves on disk, and how a stopped one goes on.

==================================  ===================================================
spec.json                           what was asked for, and where and with what it ran
seed-N/model.safetensors            the model; `history.parquet` beside it has its curves
seed-N/simplifications.safetensors  what was fitted to it
seed-N/cells/SPLIT/*.parquet        per-sequence sums of each proxy on each split
seed-N/heads.parquet                scores of attention heads, if proxies edit single heads
seed-N/views/*.parquet              what the report draws beside the numbers
results.parquet, gaps.parquet       every number, every gap and verdict
claims.json, checks.json            the paper's claims as measured; the self-checks
report.html, figures/               the report
==================================  ===================================================

Every file appears whole or not at all, so that whatever is there can be trusted.
"""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

import polars as pl

from anamorph.errors import AnamorphError
from anamorph.faithfulness import CellKey, CellSums, SumIndex
from anamorph.files import replacing

TABLES = ("results.parquet", "gaps.parquet", "claims.json", "checks.json")
MOST_DIFFERENCES = 6  # between two specifications, that an error names
REQUIRED = ("study", "task", "model", "training", "simplify", "audit", "seeds", "threads")
PACKAGES = ("torch", "lightning-fabric", "numpy", "polars", "scikit-learn", "safetensors")


class Run:
    """A run folder.

    Attributes:
        path: where it lies.
        spec: the content of `spec.json`.
    """

    def __init__(self, path: Path, spec: Mapping[str, Any]) -> None:
        self.path, self.spec = path, spec

    @property
    def complete(self) -> bool:
        """Whether the study came to its end, and nothing of it was deleted since."""
        return self.report.exists() and all((self.path / name).exists() for name in TABLES)

    @property
    def report(self) -> Path:
        """Where the report lies."""
        return self.path / "report.html"

    def seed(self, seed: int) -> Path:
        """The folder of one model."""
        return self.path / f"seed-{seed}"

    def cell(self, seed: int, proxy: str, split: str) -> Path:
        """Where the sums of a cell lie; the name is a digest of the proxy's spec string."""
        digest = hashlib.sha256(proxy.encode()).hexdigest()[:16]
        return self.seed(seed) / "cells" / split / f"{digest}.parquet"

    @property
    def results(self) -> pl.DataFrame:
        """Every number with its interval."""
        return read_table(self.path / "results.parquet")

    @property
    def gaps(self) -> pl.DataFrame:
        """Every generalization gap with its interval, p-value and verdict."""
        return read_table(self.path / "gaps.parquet")

    @property
    def claims(self) -> list[dict[str, Any]]:
        """The paper's claims as measured here."""
        return read_json(self.path / "claims.json")  # type: ignore[no-any-return]

    @property
    def checks(self) -> dict[str, Any]:
        """The identity self-check and the noise floor."""
        return read_json(self.path / "checks.json")  # type: ignore[no-any-return]

    @property
    def history(self) -> pl.DataFrame:
        """The training curves of all seeds."""
        tables = [
            read_table(self.seed(seed) / "history.parquet").with_columns(seed=pl.lit(seed))
            for seed in self.spec["seeds"]
        ]
        return pl.concat(tables)


class CellFiles(Mapping[CellKey, CellSums]):
    """The cells of a run, read from disk one at a time as they are asked for."""

    def __init__(
        self,
        run: Run,
        seeds: Sequence[int],
        proxies: Sequence[str],
        indexes: Mapping[str, SumIndex],
    ) -> None:
        self.run, self.indexes = run, indexes
        self.keys_ = [(s, p, split) for split in indexes for p in proxies for s in seeds]

    def __getitem__(self, key: CellKey) -> CellSums:
        return CellSums.load(self.run.cell(*key), self.indexes[key[2]])

    def __contains__(self, key: object) -> bool:
        return key in self.keys_

    def __iter__(self) -> Iterator[CellKey]:
        return iter(self.keys_)

    def __len__(self) -> int:
        return len(self.keys_)


def open_run(path: Path | str, spec: Mapping[str, Any]) -> Run:
    """Begin a run, or go on with one of the same specification.

    Raises:
        AnamorphError: if the folder holds another run or other files, or cannot be written to.
    """
    path = Path(path)
    if (path / "spec.json").exists():
        run = load_run(path)
        asked = json.loads(json.dumps(spec))
        # What the choices say follows from the rest, in words that may be mended.
        different = [k for k in asked if k != "choices" and asked[k] != run.spec.get(k)]
        if different:
            found = [d for k in different for d in _differences(k, run.spec.get(k), asked[k])]
            what = "; ".join(found[:MOST_DIFFERENCES])
            if len(found) > MOST_DIFFERENCES:
                what += f"; and {len(found) - MOST_DIFFERENCES} more"
            raise AnamorphError(
                f"{path} holds a run of another specification ({what}). Give another --out, or "
                "delete that folder."
            )
        for leftover in path.rglob(".*.tmp"):  # of a write that was killed
            leftover.unlink(missing_ok=True)
        return run
    if path.is_file() or (path.is_dir() and not _only_begun(path)):
        raise AnamorphError(
            f"{path} exists and holds no run (it has no spec.json); give an empty or new folder."
        )
    full = {**spec, "environment": environment()}
    write_json(path / "spec.json", full)
    return Run(path, full)


def _differences(name: str, there: Any, asked: Any) -> list[str]:
    """Where two parts of a specification differ, as `training.steps: there 60, asked 7`."""
    if there == asked:
        return []
    if isinstance(there, dict) and isinstance(asked, dict):
        keys = dict.fromkeys([*there, *asked])
        return [
            found
            for key in keys
            for found in _differences(f"{name}.{key}", there.get(key), asked.get(key))
        ]
    return [f"{name}: there {there}, asked {asked}"]


def load_run(path: Path | str) -> Run:
    """Open a run folder to look at.

    Raises:
        AnamorphError: if it holds no run, or a damaged one.
    """
    path = Path(path)
    if not (path / "spec.json").exists():
        raise AnamorphError(f"{path} holds no run: there is no spec.json in it.")
    spec = read_json(path / "spec.json")
    missing = [key for key in REQUIRED if not isinstance(spec, dict) or key not in spec]
    if missing:
        raise AnamorphError(
            f"{path / 'spec.json'} has no {', '.join(missing)}, so it is no run's specification; "
            "it is damaged or of another program. Put the right file back, or begin a new run."
        )
    return Run(path, spec)


def environment() -> dict[str, Any]:
    """Versions, commit and machine."""
    return {
        "anamorph": _version("anamorph"),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def read_table(path: Path) -> pl.DataFrame:
    """A Parquet file.

    Raises:
        AnamorphError: if it is missing or damaged.
    """
    try:
        return pl.read_parquet(path, memory_map=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise AnamorphError(
            f"Cannot read {path} ({error}). If it is missing, the run did not come to its end: "
            "give its command again. If it is damaged, delete it first."
        ) from error


def write_table(path: Path, table: pl.DataFrame) -> None:
    """Write a Parquet file that appears whole or not at all."""
    with replacing(path) as temporary:
        table.write_parquet(temporary, compression="zstd")


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        AnamorphError: if it is missing or damaged.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise AnamorphError(
            f"Cannot read {path} ({error}). If it is missing, the run did not come to its end: "
            "give its command again. If it is damaged, delete it first."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that appears whole or not at all."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", "utf-8")


def _only_begun(path: Path) -> bool:
    """Whether a folder holds nothing but a `spec.json` whose writing was killed."""
    return all(fnmatch(file.name, ".spec.json.*.tmp") for file in path.iterdir())


def _version(package: str) -> str | None:
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
