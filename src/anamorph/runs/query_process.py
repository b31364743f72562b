"""A question across runs, answered by DuckDB in a process of its own.

What it may do is bound by DuckDB itself: one SELECT, in a transaction that only reads, over the
files of the runs and no other. It runs apart so that a file that crashes DuckDB, or a question that
takes too long, ends that process and nothing else.
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import duckdb
from duckdb import DuckDBPyConnection, DuckDBPyRelation, StatementType
from duckdb.sqltypes import DuckDBPyType

from anamorph.errors import AnamorphError, RunFolderError
from anamorph.runs.query_tables import (
    OF_FILES,
    PLACE,
    Schema,
    fault,
    literal,
    of_cells,
    of_files,
)
from anamorph.store import StorePath, address_of

if sys.platform != "win32":
    import resource

ANSWER = "answer.parquet"
MOST_VALUES = 500_000_000  # of an answer, rows times columns: as numbers, 4 GB
MOST_BYTES = 4 * 2**30  # of a file; DuckDB begins another temporary one long before
ALLOWED = (
    "A question is one SELECT, which may read the tables of its runs and no other file or address, "
    "and changes nothing."
)
_AGAIN = (
    "Delete the file, and the command of the run makes it again; or leave such runs out (--skip, "
    "skip=True)."
)
_OF_THE_QUESTION = (
    *(duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException),
    *(duckdb.ConversionException, duckdb.OutOfRangeException, duckdb.OutOfMemoryException),
)
"""Errors that say nothing of files."""

_LOCKS = {
    "memory_limit": "'50%'",
    "max_temp_directory_size": "'20GB'",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "enable_progress_bar": "false",
    "python_enable_replacements": "false",  # a variable of this process is no table
    "enable_external_access": "false",
    "lock_configuration": "true",
}
_LEAVES = {
    *("boolean", "float", "double", "decimal", "varchar", "blob", "date", "time"),
    *(f"{sign}{size}int" for sign in ("", "u") for size in ("tiny", "small", "big")),
    *("integer", "uinteger", "timestamp", "timestamp with time zone"),
    *("timestamp_s", "timestamp_ms", "timestamp_ns"),
}
"""Types that a Parquet file keeps, and polars reads, as they are."""


class Question(NamedTuple):
    """What is asked.

    Attributes:
        sql: one SELECT.
        folder: a private one, in which the tables of all specs lie, and the answer will.
        runs: what each run is called.
        files: by table, the number of a run and a path in its folder.
        made: the tables to be asked of, each after those that it is made of.
        skip: leave out runs with damaged files, in place of an error.
    """

    sql: str
    folder: str
    runs: list[str]
    files: dict[str, list[tuple[int, str]]]
    made: list[str]
    skip: bool


class _File(NamedTuple):
    """A table of a run, as a link to it lies in the private folder."""

    run: int
    path: str
    link: str


def answer_apart(question: Question, watch: object) -> list[str]:
    """As `answer`, in a process that does nothing else: no file of it can fill the disk."""
    if sys.platform != "win32":
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_BYTES, hard))
    return answer(question, watch)


def answer(question: Question, watch: object) -> list[str]:
    """Answer a question, into the file `ANSWER`.

    Returns:
        the runs that were left out, and why.

    Raises:
        AnamorphError: if it is no question, or DuckDB cannot answer it; a RunFolderError if a file
            of a run is damaged.
    """
    with duckdb.connect(":memory:") as connection:
        _check(connection, question.sql)
        folder = Path(question.folder)
        files = {
            table: [
                _linked(run, path, folder / f"{PLACE}={run}" / f"{table}-{number}.parquet")
                for number, (run, path) in enumerate(found)
            ]
            for table, found in question.files.items()
        }
        schemas, faults = _read_schemas(connection, files)
        if faults and not question.skip:
            more = f"\n{len(faults) - 1} more runs are damaged." if len(faults) > 1 else ""
            raise RunFolderError(f"{next(iter(faults.values()))}{more}\n{_AGAIN}")
        left = {
            table: [file for file in found if file.run not in faults]
            for table, found in files.items()
        }
        _make_tables(connection, question, left, schemas)
        _lock(connection, folder, [file.link for found in left.values() for file in found])
        try:
            found = _written(connection.sql(question.sql))
            found = found.limit(MOST_VALUES // len(found.columns) + 1)
            found.write_parquet(str(folder / ANSWER), compression="uncompressed")
        except duckdb.PermissionException as error:
            raise AnamorphError(f"{_told(error, files)}\n{ALLOWED}") from None
        except _OF_THE_QUESTION as error:
            raise AnamorphError(f"DuckDB cannot answer: {_told(error, files)}") from None
        except (duckdb.Error, RuntimeError) as error:
            told = _told(error, files)
            if damaged := _damaged([file for found in left.values() for file in found]):
                raise RunFolderError(
                    f"Cannot read {shown(damaged.path)}: {told}\n{_AGAIN}"
                ) from None
            raise AnamorphError(f"DuckDB cannot answer: {told}") from None
        return list(faults.values())


def _check(connection: DuckDBPyConnection, sql: str) -> None:
    """Whether it is one SELECT."""
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise AnamorphError(f"This is no SQL: {error}") from None
    kinds = [statement.type for statement in statements]
    if kinds != [StatementType.SELECT]:
        given = ", ".join(kind.name for kind in kinds) or "nothing"
        raise AnamorphError(f"{ALLOWED} Got {given}: {sql.strip()[:200]!r}.")


def _linked(run: int, path: str, link: Path) -> _File:
    """Link to a file of a run under a plain name, whatever the run is called."""
    link.parent.mkdir(exist_ok=True)
    address = address_of(path)
    if isinstance(address, StorePath):
        address.fetch(link)
        return _File(run, path, str(link))
    try:
        os.symlink(path, link)
    except OSError:  # Windows asks for a privilege
        shutil.copyfile(path, link)
    return _File(run, path, str(link))


def _read_schemas(
    connection: DuckDBPyConnection, files: Mapping[str, Sequence[_File]]
) -> tuple[dict[str, Schema], dict[int, str]]:
    """The columns of every file, by its link; and by run what is wrong with a file of it."""
    schemas: dict[str, Schema] = {}
    faults: dict[int, str] = {}
    for table, some in files.items():
        try:
            schemas |= _schemas(connection, some)
        except (duckdb.Error, RuntimeError):
            for file in some:
                try:
                    schemas |= _schemas(connection, [file])
                except (duckdb.Error, RuntimeError) as error:
                    faults.setdefault(file.run, _unreadable(file, error))
        for file in some:
            if file.link not in schemas:
                continue
            if wrong := fault(table, schemas[file.link]):
                faults.setdefault(file.run, f"{shown(file.path)} is no table of a run: {wrong}.")
            elif table != "sites" and "family" not in dict(schemas[file.link]):
                try:
                    schemas |= _with_families(connection, file)
                except (duckdb.Error, RuntimeError) as error:
                    faults.setdefault(file.run, _unreadable(file, error))
    return schemas, faults


def _with_families(connection: DuckDBPyConnection, file: _File) -> dict[str, Schema]:
    """Give a table of an earlier version its families, in the private folder; and its columns."""
    from anamorph.runs.older import (
        split_size,
    )  # here: polars takes its time, and few tables need it

    source = f"read_parquet({literal(file.link)}, hive_partitioning = false)"
    found = connection.execute(f"SELECT DISTINCT simplification, size FROM {source}").fetchall()
    if not found:
        return _schemas(connection, [file])
    connection.execute("CREATE TEMP TABLE families (p VARCHAR, s DOUBLE, f VARCHAR, n VARCHAR)")
    columns = zip(*((*row, *split_size(*row)) for row in found), strict=True)
    connection.execute(
        "INSERT INTO families SELECT unnest(?), unnest(?), unnest(?), unnest(?)",
        [*map(list, columns)],
    )
    whole = file.link + ".whole"
    connection.execute(
        f"COPY (SELECT x.*, f AS family, n AS size_name FROM {source} x JOIN families ON "
        f"simplification = p AND size IS NOT DISTINCT FROM s) TO {literal(whole)} (FORMAT parquet)"
    )
    connection.execute("DROP TABLE families")
    os.replace(whole, file.link)
    return _schemas(connection, [file])


def _schemas(connection: DuckDBPyConnection, files: Sequence[_File]) -> dict[str, Schema]:
    found: dict[str, list[tuple[str, str]]] = {file.link: [] for file in files}
    if files:
        asked = "SELECT file_name, name, duckdb_type FROM parquet_schema(?) WHERE duckdb_type <> ''"
        for link, name, kind in connection.execute(asked, [list(found)]).fetchall():
            found[link].append((name, kind))
    return {link: tuple(columns) for link, columns in found.items()}


def _make_tables(
    connection: DuckDBPyConnection,
    question: Question,
    files: Mapping[str, Sequence[_File]],
    schemas: Mapping[str, Schema],
) -> None:
    for table in question.made:
        if table in OF_FILES:
            alike: dict[Schema, list[str]] = {}
            for file in files[table]:
                alike.setdefault(schemas[file.link], []).append(file.link)
            sql = of_files(table, alike, question.runs)
        elif table == "cells":
            sql = of_cells()
        else:
            sql = f"SELECT * FROM read_parquet({literal(str(made_file(question.folder, table)))})"
        connection.execute(f"CREATE VIEW {table} AS {sql}")


def made_file(folder: str, table: str) -> Path:
    """Where a table that is made of all specs lies, in the private folder."""
    return Path(folder) / f"{table}.parquet"


def _lock(connection: DuckDBPyConnection, folder: Path, links: Sequence[str]) -> None:
    """Close all that a SELECT could reach but the files; there is no way back."""
    made = [folder / ANSWER, *(made_file(str(folder), table) for table in ("specs", "settings"))]
    allowed = ", ".join(map(literal, [*map(str, made), *links]))
    connection.execute(f"SET allowed_paths = [{allowed}]")
    connection.execute(f"SET temp_directory = {literal(str(folder / 'spilled'))}")
    for name, value in _LOCKS.items():
        connection.execute(f"SET {name} = {value}")
    connection.execute("BEGIN TRANSACTION READ ONLY")


def _written(relation: DuckDBPyRelation) -> DuckDBPyRelation:
    """An answer of types that a Parquet file keeps: of the others, whole numbers or texts."""
    kinds = {"hugeint": "BIGINT", "uhugeint": "UBIGINT"}
    if all(map(_kept, relation.types)):
        return relation
    columns = []
    for name, kind in zip(relation.columns, relation.types, strict=True):
        column = duckdb.ColumnExpression(name)
        if not _kept(kind):
            column = column.cast(duckdb.dtype(kinds.get(kind.id, "VARCHAR")))
        columns.append(column.alias(name))
    return relation.select(*columns)


def _kept(kind: DuckDBPyType) -> bool:
    if kind.id in ("list", "struct"):
        return all(isinstance(child, DuckDBPyType) and _kept(child) for _, child in kind.children)
    return kind.id in _LEAVES


def _damaged(files: Sequence[_File]) -> _File | None:
    """The first file that cannot be read from its beginning to its end; None if all can."""
    for file in files:
        with duckdb.connect(":memory:") as connection:
            try:
                source = f"read_parquet({literal(file.link)}, hive_partitioning = false)"
                connection.execute(f"SELECT max(hash(x)) FROM {source} AS x")
            except (duckdb.Error, RuntimeError):
                return file
    return None


def _unreadable(file: _File, error: Exception) -> str:
    told = str(error).replace(file.link, "it")
    return shown(f"Cannot read {file.path}: {told}")


def _told(error: Exception, files: Mapping[str, Sequence[_File]]) -> str:
    """What DuckDB says, without its advice, and with the paths of files in place of links."""
    text = str(error).partition("\n\nPossible solutions")[0]
    for some in files.values():
        for file in some:
            text = text.replace(file.link, file.path)
    return shown(text)


def shown(text: str) -> str:
    """A text in which nothing commands a terminal: control characters are written out."""
    return "".join(x if x.isprintable() or x == "\n" else _escaped(x) for x in text)


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")
