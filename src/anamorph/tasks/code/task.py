"""Code completion: the next character of functions, in repositories and languages not trained on.

====================  ======  ==================================================================
split                 role    functions
====================  ======  ==================================================================
train                 train   of the training language, from the repositories that are trained on
iid                   iid     other functions of the same repositories, held out of each
unseen_repository     ood     of the training language, from other repositories
LANGUAGE              ood     of another language, one split each
====================  ======  ==================================================================

The order of every split is random, so that its beginning is a sample of it. Every split but `train`
has the lengths of `iid`, and every beginning of it those of the same beginning of `iid`; where
there are too few functions of a length some places stay empty, at random. No function of a test
split occurs in `train`, neither as it is, but for white space, nor with its names and literals
abstracted; the task's specification counts what was left out. A sequence is START and the
function's characters, cut at the context. Every character is scored.

The task is that of the paper (arXiv 2312.03656) and of Husain et al. 2019 (arXiv 1909.09436).
"""

import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anamorph.corpora import (
    Corpus,
    cache_folder,
    from_codesearchnet,
    from_folders,
    from_recipe,
)
from anamorph.corpora.from_datasets import write_files
from anamorph.corpora.token_kinds import Spans
from anamorph.errors import AnamorphError, require
from anamorph.progress import Watch, ignore
from anamorph.tasks.base import NOT_APPLICABLE, Facet, Split, Task, role_of
from anamorph.tasks.code.about import about
from anamorph.tasks.code.facets import LEVELS, label
from anamorph.tasks.code.lengths import matching, tell_lengths
from anamorph.tasks.ragged import Rows

START, UNKNOWN, FIRST_CHARACTER = 0, 1, 2
RARE = 20  # a character that train has less often is unknown
UNSEEN_SHARE = 0.2  # of the repositories, where nothing says which are not to be trained on

Unit = Literal["characters", "bytes"]


def code(
    *,
    corpus: str | Mapping[str, str] = "demo",
    language: str = "java",
    languages: Sequence[str] | None = None,
    train: int = 20_000,
    test: int = 1_000,
    context: int = 256,
    unit: Unit = "characters",
    copied: int = 4,
    seed: int = 0,
    cache: str | Path | None = None,
    watch: Watch = ignore,
) -> Task:
    """Make the code completion task with all its splits.

    Args:
        corpus: a recipe's name or TOML file, a folder with CodeSearchNet's files, `datasets:NAME`
            for what the package `datasets` has under that name, or folders of source code: `train`,
            if there is one `unseen` (repositories that are not trained on), and one for every other
            language by its name.
        language: that is trained on.
        languages: the others; None for all that the corpus has.
        train: functions, at most.
        test: functions in each other split, at most.
        context: tokens of a sequence, START included; longer functions are cut.
        unit: what is a token, `characters` or UTF-8 `bytes`.
        copied: characters that must have occurred before for the facet `copying`.
        seed: of what is held out and drawn.
        cache: a folder for downloads and functions; None for the user's cache folder.
        watch: told of progress.

    Raises:
        AnamorphError: if an argument does not fit, or the corpus cannot be read or lacks something.
    """
    spec = {key: given for key, given in dict(locals()).items() if key not in ("cache", "watch")}
    if isinstance(corpus, Mapping):
        spec["corpus"] = dict(corpus)
    if isinstance(languages, tuple):
        spec["languages"] = list(languages)
    _check(spec)
    if not isinstance(cache, str | Path | None):
        raise AnamorphError(f"code: cache must be a folder; got {cache!r}.")
    asked = None if languages is None else [language, *(x for x in languages if x != language)]
    read = read_corpus(corpus, language, asked, Path(cache) if cache else cache_folder(), watch)
    chosen, counts = draw(read, language, train, test, context, seed)
    known = _characters(chosen["train"], context)
    vocabulary = ("START", "UNKNOWN", *known)
    if unit == "bytes":
        vocabulary = ("START", *(f"{byte:02x}" for byte in range(256)))
    splits = {
        name: _to_split(name, table, known, unit, context, copied) for name, table in chosen.items()
    }
    spec |= {"made": read.checksum, "splits": counts}
    return Task(
        name="code",
        spec={"name": "code", **spec},
        vocabulary=vocabulary,
        candidates=np.arange(UNKNOWN, len(vocabulary)),  # or the first byte
        splits=splits,
        about=about(spec),
    )


def read_corpus(
    corpus: str | Mapping[str, str],
    language: str,
    languages: Sequence[str] | None,
    cache: Path,
    watch: Watch,
) -> Corpus:
    """The functions of the training language and of the others.

    Raises:
        AnamorphError: if the corpus cannot be read.
    """
    if not isinstance(corpus, str):
        if "train" not in corpus:
            raise AnamorphError(
                "code: folders must have one to train on, named train; got "
                f"{', '.join(corpus) or 'none'}."
            )
        _check_apart(corpus)
        known = {"train": (language, "train"), "unseen": (language, "test")}
        folders = [
            (*known.get(name, (name, "test")), Path(path).expanduser())
            for name, path in corpus.items()
        ]
        return from_folders(folders, cache, watch)
    folder = Path(corpus).expanduser()
    if corpus.startswith("datasets:"):
        folder = write_files(corpus.removeprefix("datasets:"), languages, cache)
    if folder.is_dir():
        return from_codesearchnet(folder, languages, cache, watch)
    return from_recipe(corpus, languages, cache, watch)


def draw(
    corpus: Corpus, language: str, train: int, test: int, context: int, seed: int
) -> tuple[dict[str, pl.DataFrame], dict[str, dict[str, int]]]:
    """The functions of every split, and the counts for the specification.

    Raises:
        AnamorphError: if the corpus has too little of the training language.
    """
    rng = np.random.default_rng(seed)
    whole = corpus.functions.get(language)
    if whole is None or not len(whole):
        raise AnamorphError(
            f"code: the corpus has no functions in {language}; it has: "
            f"{', '.join(f'{k} ({len(v):,})' for k, v in corpus.functions.items())}. Functions of "
            "fewer than three lines, constructors, tests and generated files do not count; "
            "task.language names the language to train on."
        )
    learnt, pools = _pools(corpus.functions, language, train, test, rng)
    chosen = {"train": learnt}
    counts = {"train": _count(learnt)}
    target: NDArray[np.int64] | None = None
    for name, pool in pools.items():
        exact = pool["exact"].is_in(learnt["exact"].implode())
        similar = pool["abstracted"].is_in(learnt["abstracted"].implode()) & ~exact
        fresh = pool.filter(~exact & ~similar)
        fresh = fresh[rng.permutation(len(fresh))]
        lengths = np.minimum(fresh["original_string"].str.len_chars().to_numpy(), context - 1)
        if target is None:  # it is iid, which comes first
            ours = whole.filter(pl.col("partition") == "train")
            _check_enough(ours, learnt, pool, fresh, language)
            target = lengths[:test]
            part = fresh.head(test)
        else:
            found = matching(lengths, target, rng)
            tell_lengths(name, lengths[found], target)
            part = fresh[found]
        if len(part):
            chosen[name] = part
            counts[name] = {
                **_count(part),
                "exact_duplicates_left_out": int(exact.sum()),
                "renamed_duplicates_left_out": int(similar.sum()),
            }
        elif name != "unseen_repository":
            warnings.warn(
                f"code: there is no split {name}: of {len(pool):,} functions {len(fresh):,} are "
                "not duplicates of train, and none of these has a length that iid has.",
                stacklevel=3,
            )
    if set(chosen) <= {"train", "iid"}:
        raise AnamorphError(
            "code: there are no functions of other repositories or languages, so nothing to "
            "compare with. Give a folder with unseen repositories (--unseen) or another language "
            "(--ood python=FOLDER), or a corpus that has some."
        )
    return chosen, counts


def _pools(
    functions: Mapping[str, pl.DataFrame],
    language: str,
    train: int,
    test: int,
    rng: np.random.Generator,
) -> tuple[pl.DataFrame, dict[str, pl.DataFrame]]:
    """The functions to train on, and by test split those that it is drawn from, `iid` first."""
    whole = functions[language]
    seen = whole.filter(pl.col("partition") == "train")
    unseen = whole.filter(pl.col("partition") == "test")
    if not len(unseen):
        repos = rng.permutation(seen["repo"].unique(maintain_order=True).to_list())
        held = pl.col("repo").is_in(repos[: int(UNSEEN_SHARE * len(repos))].tolist())
        seen, unseen = seen.filter(~held), seen.filter(held)
    # repository by repository, functions in random order: the first of each are held out
    shuffled = seen[rng.permutation(len(seen))]
    wanted = min(2 * test / max(1, len(seen)), 0.2)  # twice: duplicates of train go
    rank = pl.int_range(pl.len()).over("repo")
    held_out = rank < (wanted * pl.len().over("repo")).ceil()
    others = {name: table for name, table in functions.items() if name != language}
    pools = {"iid": shuffled.filter(held_out), "unseen_repository": unseen, **others}
    return shuffled.filter(~held_out).head(train), pools


def _check_enough(
    ours: pl.DataFrame,
    learnt: pl.DataFrame,
    pool: pl.DataFrame,
    fresh: pl.DataFrame,
    language: str,
) -> None:
    """Whether there is something to train on, and something of `iid`."""
    if not len(fresh) or len(learnt) < 2:
        raise AnamorphError(
            f"code: {len(ours):,} functions of {ours['repo'].n_unique()} repositories in "
            f"{language} are too few to train on and to hold out some that are not duplicates "
            f"({len(pool):,} held out, {len(fresh):,} left); give more source code."
        )


def _check_apart(folders: Mapping[str, str]) -> None:
    """That no repository is both trained on and unseen."""
    if "unseen" in folders:
        train, unseen = (Path(folders[k]).expanduser().resolve() for k in ("train", "unseen"))
        if train.is_relative_to(unseen) or unseen.is_relative_to(train):
            raise AnamorphError(
                f"code: the folders to train on and of unseen repositories overlap ({train}, "
                f"{unseen}); give one beside the other, or leave unseen out: then a fifth of the "
                "repositories is held out."
            )


def _count(table: pl.DataFrame) -> dict[str, int]:
    return {
        "functions": len(table),
        "repositories": table["repo"].n_unique(),
        "characters": int(table["original_string"].str.len_chars().sum()),
    }


def _characters(table: pl.DataFrame, context: int) -> list[str]:
    """The characters of train that are not rare, in their order."""
    counts = Counter(chain.from_iterable(table["original_string"].str.slice(0, context - 1)))
    return sorted(character for character, count in counts.items() if count >= RARE)


def _to_split(
    name: str, table: pl.DataFrame, known: Sequence[str], unit: Unit, context: int, copied: int
) -> Split:
    of_character = np.full(sys.maxunicode + 1, UNKNOWN, np.int16)
    of_character[[ord(c) for c in known]] = np.arange(len(known)) + FIRST_CHARACTER
    tokens: list[NDArray[np.int16]] = []
    labels: dict[str, list[NDArray[np.int16]]] = {facet: [] for facet in LEVELS}
    columns = ("original_string", "span_lengths", "span_kinds", "span_depths")
    for whole, *spans in table.select(columns).iter_rows():
        text = whole[: context - 1]
        ids = of_character[np.frombuffer(text.encode("utf-32-le"), "<u4")]
        unknown, owner = ids == UNKNOWN, np.arange(len(ids))
        if unit == "bytes":
            content = np.frombuffer(text.encode(), np.uint8)[: context - 1]
            ids = content.astype(np.int16) + 1  # behind START
            owner = np.cumsum(content & 0xC0 != 0x80) - 1  # those are not a character's first byte
        tokens.append(np.concatenate([[START], ids], dtype=np.int16))
        if name == "train":  # is not audited
            continue
        made = label(whole, Spans(*spans), copied, len(text))
        made["character"] = unknown.astype(np.int16)
        for facet, codes in made.items():
            labels[facet].append(np.concatenate([[NOT_APPLICABLE], codes[owner]]))
    rows = Rows.of([len(x) for x in tokens])
    return Split(
        name=name,
        role=role_of(name),
        tokens=np.concatenate(tokens),
        offsets=rows.offsets,
        scored=rows.position > 0,
        facets={
            facet: Facet(np.concatenate(codes).astype(np.int16), LEVELS[facet])
            for facet, codes in labels.items()
            if codes
        },
        ids=table.select(pl.concat_str("repo", "path", "func_name", separator="/")).to_series(),
    )


def _check(spec: dict[str, Any]) -> None:
    for name, least in {"train": 2, "test": 2, "context": 8, "copied": 1, "seed": 0}.items():
        require(f"code: {name}", spec[name], whole=True, least=least)
    require("code: unit", spec["unit"], among=get_args(Unit))
    languages = spec["languages"]
    if languages is not None and not _are_names(languages):
        raise AnamorphError(
            f'code: languages must be a list of names, as ["python", "go"]; got {languages!r}.'
        )
    corpus = spec["corpus"]
    if not (isinstance(corpus, str) and corpus) and not (
        isinstance(corpus, dict) and _are_names([*corpus, *corpus.values()])
    ):
        raise AnamorphError(
            "code: corpus must be a recipe's name or file, a folder, datasets:NAME, or a table of "
            f"folders by language; got {corpus!r}."
        )


def _are_names(given: Any) -> bool:
    return isinstance(given, list) and all(isinstance(name, str) and name for name in given)
