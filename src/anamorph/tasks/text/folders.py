"""Which files of a folder hold its documents: those of a data set, or every one of a text folder.

A folder cloned from a hub, or written by `datasets`, has files about the data beside the data. And
it may hold several splits, which must not be mixed: then it is refused.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from glob import glob, has_magic
from pathlib import Path

from anamorph.errors import AnamorphError
from anamorph.tasks.text.content import Kind, ending, kind_of, without_ending
from anamorph.tasks.text.parsed import is_single_object

Typed = list[tuple[Path, Kind]]

SKIPPED = ("__pycache__", "node_modules")  # folders of what tools put there

_ABOUT_DATA = re.compile(  # the second kind is what Spark writes
    r"(dataset_infos?|dataset_dict|croissant)\.json|_(success|(common_)?metadata|committed.*|started.*)",
    re.IGNORECASE,
)
_ABOUT = re.compile(  # names of texts that speak of the files beside them
    r"(readme|licen[cs]e|copying|notice|citation|changelog|authors|contributing)\b.*", re.IGNORECASE
)
_BESIDE = (  # and endings of what lies beside the data of a hub
    *(".md", ".py", ".ipynb", ".sh", ".toml", ".yaml", ".yml", ".cfg", ".bib", ".cff", ".html"),
    *(".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".pdf"),
)
_PLAIN = (".txt", ".text", ".tokens", ".raw")
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF_WORD = {word: split for split, words in _SPLITS.items() for word in words}
_SHARD = re.compile(r"(.+?)[-._]\d{3,}-of-\d{3,}\b.*")
_CONFIGURATION = re.compile(r"^[ -]*config_name:\s*(\S+)", re.MULTILINE)  # in a card


def files_of_pattern(pattern: str) -> Typed:
    """The files that a pattern such as `data/train-*.parquet` names, in the order of their paths.

    Raises:
        AnamorphError: if there are none, or they are of different kinds.
    """
    found = sorted(path for path in map(Path, glob(pattern, recursive=True)) if path.is_file())
    if not found:
        raise AnamorphError(
            f"There is no file or folder {pattern!r}"
            + (", and no file that fits the pattern" if has_magic(pattern) else "")
            + "; give a .jsonl, .csv, .parquet or text file, or a folder of them."
        )
    files = [(path, kind_of(path)) for path in found]
    tables, texts = _parted(files)
    if tables and texts:
        raise _mixed(pattern, tables, texts)
    return files


def files_of_folder(folder: Path) -> Typed:
    """The files of a folder that hold documents, in the order of their paths.

    Raises:
        AnamorphError: if there are none, or they do not belong together.
    """
    if (folder / "dataset_dict.json").is_file():
        return files_of_folder(_only_split(folder))
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return _saved(folder)
    files = [(file, kind_of(file)) for file in _shown(folder)]
    tables, texts = _parted(files)
    if tables and not all(_ABOUT.fullmatch(text.name) for text in texts):
        no_data = all(kind in ("json", "text") for _, kind in files)
        if not (no_data and all(map(is_single_object, tables))):
            raise _mixed(str(folder), tables, texts)
        tables = []  # they are such as package.json, in source code
    if not tables:
        _check_texts(folder, [file for file, _ in files])
        return [(file, "text") for file, _ in files]
    _check_tables(folder, tables)
    return [(file, kind) for file, kind in files if kind != "text"]


def _shown(folder: Path) -> list[Path]:
    """The files that are not hidden and do not speak of data instead of being data, sorted."""
    found = sorted(
        file.relative_to(folder).parts for file in folder.rglob("*") if not file.is_dir()
    )
    files = [
        folder.joinpath(*parts)
        for parts in found
        if not any(part.startswith(".") or part in SKIPPED for part in parts)
    ]
    data = [file for file in files if not _ABOUT_DATA.fullmatch(file.name)]
    if _is_cloned(folder):
        data = [file for file in data if not _ABOUT.fullmatch(file.name)]
        data = [file for file in data if ending(file) not in _BESIDE] or data
    if not data:
        besides = " but what speaks of the data" if files else ""
        raise AnamorphError(
            f"The folder {str(folder)!r} has no file in it{besides}; give a folder of data or text "
            "files."
        )
    for file in data:
        if not file.exists():
            raise AnamorphError(
                f"{file} is a link to a file that is not there; get the file (as with git annex "
                "get), or leave the link out."
            )
    return data


def _parted(files: Typed) -> tuple[list[Path], list[Path]]:
    """Tables, and texts."""
    tables = [file for file, kind in files if kind != "text"]
    return tables, [file for file, kind in files if kind == "text"]


def _is_cloned(folder: Path) -> bool:
    """Whether it comes from a hub: with a card, or with data kept by git-lfs."""
    attributes = folder / ".gitattributes"
    lfs = attributes.is_file() and b"filter=lfs" in attributes.read_bytes()
    return lfs or _card(folder) is not None


def _card(folder: Path) -> str | None:
    """What a card says to machines: YAML between two lines at its beginning; None for no card."""
    readme = folder / "README.md"
    text = readme.read_text("utf-8", "replace") if readme.is_file() else ""
    found = re.match(r"\ufeff?---\s*\n(.*?)\n---", text, re.DOTALL)
    return found and found[1]


def _only_split(folder: Path) -> Path:
    splits = _read(folder / "dataset_dict.json").get("splits", [])
    if len(splits) != 1:
        raise AnamorphError(
            f"{folder} holds several splits that datasets saved ({', '.join(map(str, splits))}); "
            f"give one of them, such as {folder / str(splits[0]) if splits else folder}."
        )
    return folder / str(splits[0])


def _saved(folder: Path) -> Typed:
    """The files of a data set that `datasets` saved, in their order."""
    files = [
        folder / Path(str(entry.get("filename", ""))).name
        for entry in _read(folder / "state.json").get("_data_files", [])
    ]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise AnamorphError(
            f"{folder} was saved by datasets, but lacks {', '.join(missing) or 'data files'}; save "
            "it again."
        )
    return [(file, kind_of(file)) for file in files]


def _read(path: Path) -> dict[str, list[dict[str, object]]]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise AnamorphError(f"Cannot read {path}: {error}. Save the data set again.") from error
    return found if isinstance(found, dict) else {}


def _check_tables(folder: Path, tables: Sequence[Path]) -> None:
    """Whether tables are parts of one whole."""
    configurations = dict.fromkeys(_CONFIGURATION.findall(_card(folder) or ""))
    if len(configurations) > 1:
        raise AnamorphError(
            f"The card of {folder} names several sets of data, which would be mixed: "
            f"{', '.join(configurations)}. Give the file or subfolder of one, or a pattern in "
            "quotes."
        )
    splits = _grouped(tables, lambda table: _split_of_table(table.relative_to(folder)))
    _refuse_several(
        folder,
        splits,
        f"file or subfolder, or a pattern in quotes, such as '{folder}/**/*{next(iter(splits))}*'",
    )
    for same in _grouped(tables, lambda table: str(without_ending(table))).values():
        if len(same) > 1:
            raise AnamorphError(
                f"{folder} holds {same[0].name} and {same[1].name}, which seem to be the same data "
                "twice; give one of the two."
            )
    places = _grouped(tables, lambda table: str(table.parent.relative_to(folder)))
    if _is_cloned(folder) and len(places) > 1:
        raise AnamorphError(
            f"{folder} holds tables in several folders, which may be different sets of data: "
            f"{_examples(folder, places)}. Give one of them, or all as a pattern in quotes: "
            f"'{folder}/**/*{tables[0].suffix}'."
        )


def _check_texts(folder: Path, files: Sequence[Path]) -> None:
    """Whether a folder of plain text has both `train` and `test` in it, as folders or files."""
    plain = [file for file in files if ending(file) in _PLAIN]
    if len(plain) > len(files) / 2:  # or it is of source code, in which test means something else
        splits = _grouped(plain, lambda file: _split_of_text(file.relative_to(folder)))
        splits.pop("", None)
        _refuse_several(folder, splits, "of the files or folders in it")


def _split_of_text(file: Path) -> str:
    folder, *inside = file.parts
    word = folder if inside else re.split(r"[._-]", without_ending(file).name)[-1]
    return _SPLIT_OF_WORD.get(word.lower(), "")


def _split_of_table(table: Path) -> str:
    words = re.findall(r"[a-z]+", table.with_suffix("").as_posix().lower())
    splits = [_SPLIT_OF_WORD[word] for word in words if word in _SPLIT_OF_WORD]
    shard = _SHARD.fullmatch(table.name)
    return splits[-1] if splits else shard[1] if shard else "no split"


def _grouped(files: Sequence[Path], key: Callable[[Path], str]) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(key(file), []).append(file)
    return groups


def _refuse_several(folder: Path, splits: Mapping[str, Sequence[Path]], one: str) -> None:
    if len(splits) > 1:
        raise AnamorphError(
            f"{folder} holds several splits, which would be mixed: {_examples(folder, splits)}. "
            f"Give one {one}."
        )


def _examples(folder: Path, groups: Mapping[str, Sequence[Path]]) -> str:
    return ", ".join(
        f"{name} ({files[0].relative_to(folder).as_posix()})" for name, files in groups.items()
    )


def _mixed(folder: str, tables: Sequence[Path], texts: Sequence[Path]) -> AnamorphError:
    return AnamorphError(
        f"{folder} mixes data ({tables[0].name}, {len(tables)} in all) with other files "
        f"({texts[0].name}, {len(texts)} in all), which cannot be documents of one kind. Give a "
        f"file, a subfolder, or a pattern in quotes, such as '**/*{tables[0].suffix}' or "
        f"'**/*{texts[0].suffix}' below it."
    )
