"""Questions across runs: SQL over the tables of any number of run folders."""

import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from anamorph.errors import AnamorphError, RunFolderError, require
from anamorph.machine.workers import EndedError, apart
from anamorph.runs.folder import Run, load_run
from anamorph.runs.query_process import (
    ANSWER,
    MOST_VALUES,
    Question,
    answer_apart,
    made_file,
    shown,
)
from anamorph.runs.query_tables import OF_FILES, TABLES, TEXT, TRUTH, WHOLE, with_needed
from anamorph.runs.underway import underway
from anamorph.store import Address, StorePath, address_of

SECONDS = 60.0  # that a question may take
_SPEC = "spec.json"
_DTYPES = {TEXT: pl.String(), TRUTH: pl.Boolean()}


def query(
    sql: str,
    runs: Path | str | Iterable[Path | str],
    *,
    timeout: float = SECONDS,
    skip: bool = False,
) -> pl.DataFrame:
    """Ask a question of any number of runs, in SQL as DuckDB has it.

    The tables are `cells` (a row a seed, proxy and split), `gaps`, `results`, `contrasts`, `sites`,
    `specs` (a row a run) and `settings` (a row a run and key); `query_columns` has their columns,
    and docs/questions.md what to know of them. In `cells`, `gaps`, `results` and `contrasts`, rows
    where `seed` is null are of all models of a run together.

    The question is answered in a process of its own, which changes nothing, and reads the tables of
    these runs and nothing else. Means over many rows may differ in the last digit from one time to
    the next, as several threads add them up.

    Args:
        sql: one SELECT.
        runs: run folders, or folders of run folders; one that is named twice counts once.
        timeout: seconds that it may take.
        skip: leave out runs that are unfinished or damaged, with a warning, in place of an error.

    Returns:
        the answer. Whole numbers beyond 64 bits are an error; types that polars does not have, such
        as intervals and enums, are texts.

    Raises:
        AnamorphError: if there is no run, it is not one SELECT, asks for other files, takes longer,
            or cannot be answered; it says why.
        RunFolderError: if a run that is asked is unfinished or damaged.

    Warns:
        UserWarning: of runs that were left out.
    """
    require("timeout", timeout, above=0)
    made = [name for name in TABLES if re.search(rf"\b{name}\b", sql, re.IGNORECASE)]
    made = list(dict.fromkeys(with_needed(made)))
    read = [name for name in made if name in OF_FILES]
    opened, left = _opened(runs, bool({"results", "gaps", "contrasts"} & {*read}), skip)
    names = _names([run.path for run in opened])
    with TemporaryDirectory(prefix="anamorph-query-") as folder:
        question = Question(
            sql=sql,
            folder=folder,
            runs=names,
            files={table: list(_files(table, opened)) for table in read},
            made=made,
            skip=skip,
        )
        for table, rows in (("specs", _specs), ("settings", _settings)):
            if table in made:
                _table(table, rows(names, opened)).write_parquet(made_file(folder, table))
        left += _asked(question, timeout)
        for said in left:
            warnings.warn(f"Left out: {said}", stacklevel=2)
        return _read(Path(folder) / ANSWER)


def _read(answer: Path) -> pl.DataFrame:
    """The answer, if it is not more than memory should take."""
    width = len(pl.read_parquet_schema(answer))
    rows = pl.scan_parquet(answer, glob=False).select(pl.len()).collect().item()
    if rows > MOST_VALUES // width:
        raise AnamorphError(
            f"The answer has more than {MOST_VALUES // width:,} rows of {width} columns. Ask for "
            "fewer, by where, limit or group by."
        )
    return pl.read_parquet(answer, memory_map=False, glob=False)


def query_columns() -> pl.DataFrame:
    """What a question may ask for.

    Returns:
        a row a column: `table`, `column`, `type` (as DuckDB has it) and `meaning`.
    """
    rows = [(t, name, *about) for t, columns in TABLES.items() for name, about in columns.items()]
    return pl.DataFrame(rows, ["table", "column", "type", "meaning"], orient="row")


def _asked(question: Question, timeout: float) -> list[str]:
    """Have a question answered; gives what was left out."""
    try:
        (left,) = apart([partial(answer_apart, question)], 1, seconds=timeout)
    except TimeoutError:
        raise AnamorphError(
            f"The question was ended after {timeout:g} seconds. Ask for less, such as the table "
            "cells or gaps in place of results, or give it more time (--timeout, timeout=…)."
        ) from None
    except EndedError:
        raise AnamorphError(
            "The process that answers the question crashed, or was killed for want of memory. Ask "
            "for fewer rows. If a short question does so too, a file of a run is damaged: ask of "
            "one run at a time to find it."
        ) from None
    return list(left)


def _opened(
    runs: Address | str | Iterable[Address | str], tables: bool, skip: bool
) -> tuple[list[Run], list[str]]:
    """The runs in folders, each once, and what was left out.

    Args:
        runs: as they were given.
        tables: whether they must have their tables.
        skip: leave out those that cannot be used.
    """
    given = [runs] if isinstance(runs, (str, Path, StorePath)) else list(runs)
    folders = {path.resolve(): path for each in given for path in _folders(address_of(each))}
    opened, left = [], []
    for path in folders.values():
        try:
            opened.append(_run(path, tables))
        except AnamorphError as error:
            if not skip:
                again = "Leave such runs out (--skip, skip=True), or name others."
                raise type(error)(f"{shown(str(error))} {again}") from None
            left.append(shown(str(error)))
    if not opened:
        raise AnamorphError("There is no run to ask: give at least one. " + " ".join(left))
    return opened, left


def _folders(path: Address) -> list[Address]:
    """A run folder, or those that lie in a folder."""
    if (path / _SPEC).exists() or not path.is_dir():
        return [path]
    return sorted((child.parent for child in path.glob(f"*/{_SPEC}")), key=str) or [path]


def _run(path: Address, tables: bool) -> Run:
    try:
        run = load_run(path)
        how_far = underway(run) if tables else None
        if not all(isinstance(seed, int) for seed in run.seeds):
            raise TypeError(f"seeds {run.seeds}; expected whole numbers")
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunFolderError(
            f"{path} is damaged: its JSON files hold something else than a run's ({error!r})."
        ) from error
    if how_far is not None:
        raise RunFolderError(f"{path} has no tables yet. {' '.join(how_far.sentences)}")
    return run


def _names(paths: Sequence[Address]) -> list[str]:
    """For each path its last part, or as many as tell it from the others."""
    parts = [PurePath(str(path.resolve())).parts for path in paths]
    length = [1] * len(paths)
    while True:
        names = ["/".join(some[-n:]) for some, n in zip(parts, length, strict=True)]
        alike = Counter(names)
        longer = [
            n + (alike[name] > 1 and n < len(some))
            for name, n, some in zip(names, length, parts, strict=True)
        ]
        if longer == length:
            return [_text(name) for name in names]
        length = longer


def _text(name: str) -> str:
    r"""A file name as text: bytes that are none are written as `\udc..`."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _files(table: str, runs: Sequence[Run]) -> Iterator[tuple[int, str]]:
    """The number of a run, and a path, of each file of a table."""
    for number, run in enumerate(runs):
        if table == "sites":
            paths = [run.seed(seed) / "sites.parquet" for seed in run.seeds]
        else:
            paths = [run.path / f"{table}.parquet"]
        yield from ((number, str(path.absolute())) for path in paths if path.exists())


def _table(name: str, rows: list[dict[str, Any]]) -> pl.DataFrame:
    schema = {c: _DTYPES.get(kind, pl.Int64()) for c, (kind, _) in TABLES[name].items()}
    return pl.DataFrame(rows, schema, strict=False)


def _specs(names: Sequence[str], runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The rows of `specs`; what a spec does not have, or has as something else, is null."""
    rows = []
    for name, run in zip(names, runs, strict=True):
        found = dict(_flat("", dict(run.spec)))
        at = {"task": "task.name", "model": "model.name", "steps": "training.steps"}
        at |= {key: f"model.{key}" for key in ("layers", "heads", "width")}
        at |= {"sequences": "audit.sequences"}
        at |= {key: f"environment.{key}" for key in ("torch", "commit")}
        row = {column: found.get(at.get(column, column)) for column in TABLES["specs"]}
        row |= {"run": name, "path": _text(str(run.path)), "seeds": len(run.seeds)}
        row |= {"finished": (run.path / "results.parquet").exists()}
        rows.append({column: _fitting(row[column], column) for column in row})
    return rows


def _fitting(value: Any, column: str) -> Any:
    """A value of a spec, if it is of the column's type."""
    kind = TABLES["specs"][column][0]
    if isinstance(value, str):
        return _text(value) if kind == TEXT else None
    if kind == TRUTH:
        return value if isinstance(value, bool) else None
    return value if kind == WHOLE and isinstance(value, int) and abs(value) < 2**63 else None


def _settings(names: Sequence[str], runs: Sequence[Run]) -> list[dict[str, Any]]:
    return [
        {
            "run": name,
            "key": _text(key),
            "value": _text(value if isinstance(value, str) else json.dumps(value)),
        }
        for name, run in zip(names, runs, strict=True)
        for key, value in _flat("", dict(run.spec))
    ]


def _flat(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of a spec, which are no dictionaries, each by its place."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(f"{key}.{name}" if key else name, inner)
    else:
        yield key, value
