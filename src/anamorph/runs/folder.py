"""The run folder: what a study leaves on disk, and how a stopped one goes on.

==================================  ===================================================
spec.json                           what was asked for, and where and with what it ran
seed-N/model.safetensors            the model; `history.parquet` beside it has its curves
seed-N/simplifications.safetensors  what was fitted to it
seed-N/fingerprints.json            digests of a trained model's weights
seed-N/works/SPLIT-*.parquet        per-sequence sums of some proxies on a split, computed together
seed-N/heads.parquet                scores of attention heads, if proxies edit single heads
seed-N/views/*.parquet              what the report draws beside the numbers
results.parquet, gaps.parquet       every number, every gap and verdict
contrasts.parquet                   how levels of facets differ
claims.json, checks.json            the paper's claims as measured; the self-checks
report.html, figures/               the report
==================================  ===================================================

Every file appears whole or not at all, so that whatever is there can be trusted.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from anamorph.errors import AnamorphError
from anamorph.files import file_name, replacing

TABLES = ("results.parquet", "gaps.parquet", "contrasts.parquet", "claims.json", "checks.json")
REQUIRED = ("study", "task", "model", "training", "simplify", "audit", "seeds", "threads")


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

    def work(self, seed: int, split: str, number: int) -> Path:
        """Where the sums of a work lie; see `anamorph.auditing.works`."""
        return self.seed(seed) / "works" / f"{file_name(split)}-{number:04d}.parquet"

    @property
    def results(self) -> pl.DataFrame:
        """Every number with its interval."""
        return read_table(self.path / "results.parquet")

    @property
    def gaps(self) -> pl.DataFrame:
        """Every generalization gap with its interval, p-value and verdict."""
        return read_table(self.path / "gaps.parquet")

    @property
    def contrasts(self) -> pl.DataFrame:
        """How the levels of facets differ within a split."""
        return read_table(self.path / "contrasts.parquet")

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
