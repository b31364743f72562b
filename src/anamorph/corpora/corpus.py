"""Corpora of functions: from recipes, from CodeSearchNet's files, from folders of source code.

Whatever they come from, functions are extracted once into the cache, one Parquet file a source;
what is killed half-way continues with the sources that have no file yet.
"""

import gzip
import hashlib
import json
import os
import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path, PurePath
from typing import Any, Literal

import polars as pl

from anamorph.corpora.archives import Limits, Problems, source_files
from anamorph.corpora.fetch import fetch
from anamorph.corpora.functions import (
    SCHEMA,
    Function,
    functions_in,
    is_test,
    parse_function,
    to_row,
    wanted_file,
)
from anamorph.corpora.languages import LANGUAGES, language_of, parser
from anamorph.corpora.recipe import read_recipe
from anamorph.errors import AnamorphError
from anamorph.files import write_json, write_table
from anamorph.machine.process import processors
from anamorph.machine.workers import apart
from anamorph.progress import Event, Watch, ignore

EXTRACTION = 1  # raised whenever the same source gives other functions than before
SMALL = 2**20  # bytes of sources for which no process is started
INSTALLED = ("node_modules", "site-packages", "__pycache__")  # folders of others' code
PARTITIONS = ("train", "valid", "test")  # CodeSearchNet's


@dataclass(frozen=True)
class Source:
    """Where functions of one language come from.

    Attributes:
        kind: `archives` of one package, a `folder` with source files, or a `codesearchnet` file.
        language: of the functions.
        repo: the repository; empty where every function says its own.
        partition: `train`, `valid` or `test`.
        paths: the archives, the folder or the file.
        about: what the manifest says of it.
    """

    kind: Literal["archives", "folder", "codesearchnet"]
    language: str
    repo: str
    partition: str
    paths: tuple[Path, ...]
    about: dict[str, Any]


@dataclass(frozen=True)
class Corpus:
    """Functions of several languages.

    Attributes:
        functions: by language, with `anamorph.corpora.functions.SCHEMA`.
        manifest: one entry a source: what it is, its checksum, what it gave and what was passed
            over.
    """

    functions: Mapping[str, pl.DataFrame]
    manifest: Sequence[Mapping[str, Any]]

    @property
    def checksum(self) -> str:
        """Of the manifest: equal for equal sources and equal functions."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()


def cache_folder() -> Path:
    """Where downloads and functions are kept: `ANAMORPH_CACHE`, or the user's cache folder."""
    if given := os.environ.get("ANAMORPH_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anamorph"


def from_recipe(
    name: str, languages: Sequence[str] | None, cache: Path, watch: Watch = ignore
) -> Corpus:
    """The functions of a recipe's packages, each package a repository.

    Raises:
        AnamorphError: as `read_recipe` and `fetch`, and if the recipe lacks a language.
    """
    recipe = read_recipe(name)
    chosen = list(recipe) if languages is None else list(languages)
    if unknown := [language for language in chosen if language not in recipe]:
        raise AnamorphError(
            f"The recipe {name} has no {', '.join(unknown)}; it has: {', '.join(recipe)}."
        )
    asked = [
        (language, package)
        for language in chosen
        for package in (*recipe[language].packages, *recipe[language].unseen)
    ]
    wanted = [(recipe[language].client, package) for language, package in asked]
    sources = []
    brought = fetch(wanted, cache / "packages", watch)
    for (language, name), package in zip(asked, brought, strict=True):
        partition = "test" if name in recipe[language].unseen else "train"
        archives = [vars(archive) for archive in package.archives]
        said: dict[str, Any] = {"client": package.client, "archives": archives}
        said |= {"missing": package.problem} if package.problem else {}
        sources.append(Source("archives", language, name, partition, tuple(package.paths), said))
    return extract(sources, cache, watch)


def from_codesearchnet(
    folder: Path, languages: Sequence[str] | None, cache: Path, watch: Watch = ignore
) -> Corpus:
    """CodeSearchNet's own files: `LANGUAGE/final/jsonl/PARTITION/*.jsonl.gz` below the folder.

    Raises:
        AnamorphError: if there are none, or a language is missing.
    """
    there = [d.name for d in sorted(folder.iterdir()) if (d / "final" / "jsonl").is_dir()]
    chosen = [x for x in there if x in LANGUAGES] if languages is None else list(languages)
    if not chosen or not set(chosen) <= set(there):
        raise AnamorphError(
            f"{folder} has no {' '.join(set(chosen) - set(there)) or 'languages'}; expected "
            "LANGUAGE/final/jsonl/PARTITION/*.jsonl.gz, as CodeSearchNet's archives have it "
            f"(languages there: {', '.join(there) or 'none'})."
        )
    sources = []
    for language, partition in product(chosen, PARTITIONS):
        place = folder / language / "final" / "jsonl" / partition
        for path in sorted(place.glob("*.jsonl.gz")):
            said = {"file": str(path.relative_to(folder)), "sha256": _checksum(path)}
            sources.append(Source("codesearchnet", language, "", partition, (path,), said))
    return extract(sources, cache, watch)


def from_folders(
    folders: Sequence[tuple[str, str, Path]], cache: Path, watch: Watch = ignore
) -> Corpus:
    """Source code in folders; each folder right inside a given one is a repository.

    Files right in the given folder make a repository of its own name. Tests are left out, and so
    are hidden folders and those of installed packages.

    Args:
        folders: language, partition and path of each.
        cache: where extracted functions are kept.
        watch: told of progress.

    Raises:
        AnamorphError: if a folder does not exist or has no file of its language.
    """
    sources = []
    for language, partition, path in folders:
        suffixes = language_of(language).suffixes
        if not path.is_dir():
            raise AnamorphError(f"There is no folder {path} with source code in {language}.")
        found = sorted(p for s in suffixes for p in path.rglob(f"*{s}") if p.is_file())
        files = [file for file in found if _is_own(file.relative_to(path))]
        if not files:
            but = f" but {len(found)} of tests or of installed packages" if found else ""
            hint = (
                " The language trained on is task.language (--set task.language=NAME), one of: "
                f"{', '.join(LANGUAGES)}."
            )
            raise AnamorphError(
                f"The folder {path} has no file of {language} ({', '.join(suffixes)}){but}."
                f"{hint if partition == 'train' else ''}"
            )
        repos = defaultdict(list)
        for file in files:
            inside = file.relative_to(path).parts
            repos[f"{path.name}/{inside[0]}" if len(inside) > 1 else path.name].append(file)
        for name, some in sorted(repos.items()):
            said = {"sha256": _checksum(*some)}
            sources.append(Source("folder", language, name, partition, tuple(some), said))
    return extract(sources, cache, watch)


def _is_own(file: PurePath) -> bool:
    """Whether a file, by its path in a folder of source code, is neither a test nor a package's."""
    folders = file.parts[:-1]
    installed = any(part.startswith(".") or part in INSTALLED for part in folders)
    return not installed and not is_test(file.as_posix())


def extract(sources: Sequence[Source], cache: Path, watch: Watch = ignore) -> Corpus:
    """The functions of all sources, from the cache where they are there already.

    Exact duplicates within a language and partition count once, whatever their white space.
    """
    for language in {source.language for source in sources}:
        parser(language)  # an error here, not in a process that works for us
    places = [cache / "functions" / _key(source) for source in sources]
    pending = [
        (s, p) for s, p in zip(sources, places, strict=True) if not p.with_suffix(".json").exists()
    ]
    there = len(sources) - len(pending)
    for done, name in enumerate(_each(pending), start=there + 1):
        watch(Event("functions", done, len(sources), name))
    manifest = []
    tables = defaultdict(list)
    for source, place in zip(sources, places, strict=True):
        said = {"language": source.language, "repo": source.repo, "partition": source.partition}
        found = json.loads(place.with_suffix(".json").read_text("utf-8"))
        manifest.append(said | source.about | found)
        table = pl.read_parquet(place.with_suffix(".parquet"), columns=list(SCHEMA))
        tables[source.language].append(table)
    functions = {
        language: pl.concat(some).unique(["exact", "partition"], keep="first", maintain_order=True)
        for language, some in tables.items()
    }
    corpus = Corpus(functions, manifest)
    path = cache / "manifests" / f"{corpus.checksum[:32]}.json"
    if not path.exists():
        write_json(path, manifest)
    _warn(manifest, path)
    return corpus


def _warn(manifest: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Name what is missing, and what was passed over."""
    missing = [entry["repo"] for entry in manifest if "missing" in entry]
    flawed = [f"{e['repo'] or e['file']}: {e['passed_over']}" for e in manifest if e["passed_over"]]
    said = []
    if missing:
        said.append(
            f"missing are {len(missing)} of {len(manifest)}: {', '.join(missing)} (delete their "
            f"folders in {path.parents[1] / 'packages'} to have them asked for again)"
        )
    if flawed:
        said.append(f"something was passed over in {len(flawed)}, first {flawed[0]}")
    if said:
        warnings.warn(f"Of the corpus {'; '.join(said)}. All of it: {path}", stacklevel=4)


def _each(pending: Sequence[tuple[Source, Path]]) -> Iterator[str]:
    """Extract every source; in processes side by side where that pays."""
    sizes = {place: sum(p.stat().st_size for p in source.paths) for source, place in pending}
    largest_first = sorted(pending, key=lambda item: -sizes[item[1]])
    calls = [partial(_extract_to, *item) for item in largest_first]
    if sum(sizes.values()) < SMALL:
        yield from (call() for call in calls)
        return
    with closing(apart(calls, processors())) as names:
        yield from names


def _key(source: Source) -> str:
    """A name for a source's functions: another for other contents."""
    said = [source.kind, source.language, source.repo, source.partition, source.about]
    text = json.dumps([EXTRACTION, *said], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _checksum(*paths: Path) -> str:
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _extract_to(source: Source, place: Path, _: Watch = ignore) -> str:
    """Write the functions of a source, and what the manifest says of them; gives its name."""
    problems = Problems()
    read = _codesearchnet if source.kind == "codesearchnet" else _of_files
    table = pl.DataFrame(list(read(source, problems)), schema=SCHEMA, orient="row")
    digest = hashlib.sha256()
    for text in table["original_string"]:
        digest.update(hashlib.sha256(text.encode()).digest())
    write_table(place.with_suffix(".parquet"), table)
    found = {
        "functions": len(table),
        "functions_sha256": digest.hexdigest(),
        "passed_over": str(problems),
    }
    write_json(place.with_suffix(".json"), found)  # last: it says that all is there
    return source.repo or source.paths[0].name


def _of_files(source: Source, problems: Problems) -> Iterator[tuple[Any, ...]]:
    """The functions of source files, in archives or in a folder."""
    language = language_of(source.language)
    for place in source.paths:
        if source.kind == "archives":
            files = source_files(place, language.suffixes, problems)
        else:
            files = _loose(place, problems)
        for path, text in files:
            if wanted_file(path, text):
                for function in functions_in(text, language):
                    yield to_row(function, source.repo, path, source.partition)


def _loose(path: Path, problems: Problems) -> Iterator[tuple[str, str]]:
    """The name and the text of a file in a folder, unless there is something amiss."""
    most = Limits().file
    if path.stat().st_size > most:
        problems.add(f"larger than {most:,} bytes", str(path))
        return
    try:
        yield path.name, path.read_text("utf-8")
    except UnicodeDecodeError:
        problems.add("no UTF-8", str(path))


def _codesearchnet(source: Source, problems: Problems) -> Iterator[tuple[Any, ...]]:
    """The functions of a file in CodeSearchNet's format; those with syntax errors are left out."""
    (path,) = source.paths
    language = language_of(source.language)
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    row = json.loads(line)
                    repo, text, name = row["repo"], row["original_string"], row["func_name"]
                    spans = parse_function(text, language)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    problems.add(f"no function: {type(error).__name__}", f"line {number}")
                    continue
                if spans is None:
                    problems.add("syntax error", f"line {number}")
                    continue
                function = Function(name, text, spans)
                yield to_row(function, repo, str(row.get("path", "")), source.partition)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        problems.add(f"the rest cannot be read: {error}", path.name)
