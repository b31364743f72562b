"""CodeSearchNet through Hugging Face's `datasets`, written once as CodeSearchNet's own files."""

import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path

from anamorph.corpora.languages import LANGUAGES
from anamorph.errors import AnamorphError
from anamorph.files import replacing

COLUMNS = {  # of the hub's copy: those of the files
    "repository_name": "repo",
    "func_path_in_repository": "path",
    "whole_func_string": "original_string",
    "func_documentation_string": "docstring",
    "func_code_url": "url",
}
PARTITIONS = {"train": "train", "validation": "valid", "test": "test"}
CODESEARCHNET = ("go", "java", "javascript", "php", "python", "ruby")


def write_files(name: str, languages: Sequence[str] | None, cache: Path) -> Path:
    """Write a data set's languages in CodeSearchNet's layout, unless they are there already.

    Args:
        name: of the data set, or a folder that `datasets` can read; it must have a configuration
            for each language.
        languages: None for all six of CodeSearchNet.
        cache: a folder; the files come to `datasets/NAME` in it.

    Returns:
        the folder, for `from_codesearchnet`.

    Raises:
        AnamorphError: if `datasets` is not installed, or the data set cannot be read.
    """
    try:
        import datasets
    except ImportError as error:
        raise AnamorphError(
            f"The corpus datasets:{name} needs the package datasets: pip install datasets."
        ) from error
    folder = cache / "datasets" / re.sub(r"\W+", "_", name)
    for language in languages or [x for x in LANGUAGES if x in CODESEARCHNET]:
        for theirs, ours in PARTITIONS.items():
            place = folder / language / "final" / "jsonl" / ours / f"{language}_{ours}_0.jsonl.gz"
            if place.exists():
                continue
            try:
                rows = datasets.load_dataset(name, language, split=theirs)
            except (OSError, ValueError, RuntimeError) as error:
                raise AnamorphError(
                    f"datasets cannot read {name!r}, {language}, {theirs}: {error}."
                ) from error
            with (
                replacing(place) as temporary,
                gzip.open(temporary, "wt", encoding="utf-8") as file,
            ):
                for row in rows:
                    named = {COLUMNS.get(key, key): value for key, value in row.items()}
                    file.write(json.dumps(named) + "\n")
    return folder
