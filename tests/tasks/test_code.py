import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from scipy import stats

from anamorph.corpora import Corpus
from anamorph.errors import AnamorphError
from anamorph.tasks import Task, load_task
from anamorph.tasks.base import NOT_APPLICABLE
from anamorph.tasks.code.lengths import matching
from anamorph.tasks.code.task import FIRST_CHARACTER, START, UNKNOWN, draw
from sources import write_sources


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_sources(tmp_path_factory.mktemp("sources"), functions=120)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def make(corpus: dict[str, str], cache: str, **arguments: Any) -> Task:
    given = {"language": "c", "test": 10, "context": 96} | arguments
    return load_task("code", corpus=corpus, cache=cache, **given)


def texts(task: Task, name: str) -> list[str]:
    """The sequences of a split as text, read from its tokens alone."""
    split = task.splits[name]
    words = ["<", "?", *task.vocabulary[FIRST_CHARACTER:]]
    return [
        "".join(words[t] for t in split.tokens[a:b])
        for a, b in zip(split.offsets[:-1], split.offsets[1:], strict=True)
    ]


def test_splits_have_their_roles_and_the_functions_of_their_folders(
    corpus: dict[str, str], cache: str
) -> None:
    task = make(corpus, cache)
    assert {name: split.role for name, split in task.splits.items()} == {
        "train": "train",
        "iid": "iid",
        "unseen_repository": "ood",
        "python": "ood",
    }
    whole = {
        key: "".join(p.read_text("utf-8") for p in Path(folder).rglob("*.*"))
        for key, folder in corpus.items()
    }
    for name, key in (("train", "train"), ("iid", "train"), ("unseen_repository", "unseen")):
        for text in texts(task, name):
            assert text[0] == "<"
            assert re.search(re.escape(text[1:]).replace(r"\?", "."), whole[key])
            assert len(text) <= 96
    train = set(texts(task, "train"))
    for split in task.evaluated:
        assert not train & set(texts(task, split.name))
        assert 1 <= len(split) <= 10
    assert task.spec["splits"]["iid"]["repositories"] == 3, "held out of every repository"


def test_everything_but_the_start_is_scored_and_labelled(
    corpus: dict[str, str], cache: str
) -> None:
    task = make(corpus, cache)
    for split in task.evaluated:
        starts = split.tokens == START
        np.testing.assert_array_equal(split.scored, ~starts)
        for name in ("token kind", "tree depth", "character", "position"):
            codes = split.facets[name].codes
            assert (codes[starts] == NOT_APPLICABLE).all()
            assert (codes[~starts] >= 0).all()
        if split.name != "python":
            assert not (split.tokens == UNKNOWN).any()
    python = task.splits["python"]
    unknown = python.facets["character"].codes == 1
    np.testing.assert_array_equal(unknown, python.tokens == UNKNOWN)
    assert unknown.any(), "é is not in train"


def test_bytes_are_the_text_in_utf_8(corpus: dict[str, str], cache: str) -> None:
    task = make(corpus, cache, unit="bytes", context=4096)
    assert len(task.vocabulary) == 257
    split = task.splits["python"]
    first = (split.tokens[1 : split.offsets[1]] - 1).astype(np.uint8).tobytes().decode()
    assert first in Path(corpus["python"], "a.py").read_text("utf-8")
    assert len(split.facets["token kind"].codes) == len(split.tokens)


def test_duplicates_of_train_are_left_out_and_counted(tmp_path: Path) -> None:
    corpus = write_sources(tmp_path)
    seen = (tmp_path / "c" / "one" / "a.c").read_text("utf-8")
    copies = seen.replace(" ", "  ") + seen.replace("total", "sum").replace("count", "number")
    (tmp_path / "more" / "copy").mkdir()
    (tmp_path / "more" / "copy" / "a.c").write_text(copies, "utf-8")
    task = make(corpus, str(tmp_path / "cache"), test=1000)
    counts = task.spec["splits"]["unseen_repository"]
    learnt = task.spec["splits"]["train"]["functions"]
    exact, renamed = (counts[f"{k}_duplicates_left_out"] for k in ("exact", "renamed"))
    assert exact > 0 and renamed > 0
    assert exact + renamed <= 60
    assert learnt >= 60


def test_lengths_are_those_of_iid(tmp_path: Path) -> None:
    corpus = write_sources(tmp_path, functions=400)
    task = make(corpus, str(tmp_path / "cache"), test=60, context=1024)
    mean = {split.name: split.lengths.mean() for split in task.evaluated}
    for name in ("unseen_repository", "python"):
        assert len(task.splits[name]) > 40
        assert mean[name] == pytest.approx(mean["iid"], rel=0.05)


def functions(rng: np.random.Generator, number: int, mean: float, most: int) -> pl.DataFrame:
    """Functions of about a mean length, repository by repository, each no duplicate of another."""
    lengths = np.clip(rng.lognormal(np.log(mean), 0.6, number), 30, most).astype(int)
    ids = [f"{mean} {i}" for i in range(number)]
    return pl.DataFrame(
        {
            "original_string": ["x" * length for length in lengths],
            "repo": [f"{mean} {i * 8 // number}" for i in range(number)],
            "partition": ["train"] * number,
            **{"exact": ids, "abstracted": ids},
        }
    )


def drawn(test: int, longest: int = 4000) -> dict[str, NDArray[np.int64]]:
    """The lengths of every split, from languages that are shorter and longer than that of iid."""
    rng = np.random.default_rng(0)
    made = {
        "java": functions(rng, 12_000, 170, 4000),
        "ruby": functions(rng, 6_000, 110, longest),
        "python": functions(rng, 6_000, 240, 4000),
    }
    chosen, _ = draw(Corpus(made, []), "java", 5000, test, 256, 0)
    return {
        name: part["original_string"].str.len_chars().clip(None, 255).to_numpy()
        for name, part in chosen.items()
        if name != "train"
    }


@pytest.fixture(scope="module")
def lengths() -> dict[str, NDArray[np.int64]]:
    return drawn(test=1000)


@pytest.mark.parametrize("name", ["unseen_repository", "ruby", "python"])
def test_every_beginning_has_the_lengths_of_the_same_beginning_of_iid(
    lengths: dict[str, NDArray[np.int64]], name: str
) -> None:
    iid, split = lengths["iid"], lengths[name]
    assert len(iid) == len(split) == 1000
    for first in (50, 100, 400, 1000):
        assert stats.ks_2samp(iid[:first], split[:first]).pvalue > 0.1
    for first in range(50, 1001):
        assert split[:first].mean() == pytest.approx(iid[:first].mean(), rel=0.02)
    # Each function is within a twentieth of iid of the function that stands there in iid.
    ranked = np.sort(iid)
    below, upto = (
        [np.searchsorted(ranked, x, side) / 1000 for x in (iid, split)]
        for side in ("left", "right")
    )
    apart = np.maximum(below[0] - upto[1], below[1] - upto[0])
    assert apart.max() <= 1 / 20 + 1 / 1000


def test_lengths_have_no_trend_along_any_split(lengths: dict[str, NDArray[np.int64]]) -> None:
    for name, split in lengths.items():
        assert stats.spearmanr(np.arange(len(split)), split).pvalue > 0.01, name


def test_where_functions_are_too_few_the_order_is_random_and_a_warning_tells() -> None:
    with pytest.warns(UserWarning, match="functions of ruby are not as long") as told:
        found = drawn(test=1000, longest=150)
    assert len(told) == 1
    iid, ruby = found["iid"], found["ruby"]
    missing = int((iid > ruby.max()).sum())
    assert abs(1000 - len(ruby) - missing) <= 50  # of a bin
    assert (
        f"mean length {ruby.mean():.0f} characters against {iid.mean():.0f}; "
        f"{1000 - len(ruby)} of 1,000 functions missing" in str(told[0].message)
    )
    assert stats.spearmanr(np.arange(len(ruby)), ruby).pvalue > 0.01
    for first in (50, 100, 400):
        assert stats.ks_2samp(ruby[:first], ruby[first:]).pvalue > 0.1


def test_places_that_stay_empty_are_drawn() -> None:
    target, pool = np.array([5, 50] * 4), np.array([50, 5, 5, 50, 5, 5, 5])
    rng = np.random.default_rng(0)
    assert matching(np.append(pool, [50, 50]), target, rng).tolist() == [1, 0, 2, 3, 4, 7, 5, 8]
    orders = {tuple(pool[matching(pool, target, rng)].tolist()) for _ in range(200)}
    # Four short ones, and two long ones in two of the four gaps that each follow one.
    gaps = [(a, b) for a in range(4) for b in range(a)]
    assert orders == {
        tuple(x for i in range(4) for x in ([5, 50] if i in pair else [5])) for pair in gaps
    }


def test_the_same_again_and_another_with_another_seed(corpus: dict[str, str], cache: str) -> None:
    task = make(corpus, cache)
    again = load_task(**{**task.spec, "cache": cache})
    assert again.spec == task.spec
    for name, split in task.splits.items():
        np.testing.assert_array_equal(split.tokens, again.splits[name].tokens)
    other = make(corpus, cache, seed=1)
    assert texts(other, "iid") != texts(task, "iid")


def test_another_corpus_under_the_same_specification_is_an_error(tmp_path: Path) -> None:
    corpus = write_sources(tmp_path)
    task = make(corpus, str(tmp_path / "cache"))
    with (tmp_path / "py" / "a.py").open("a") as file:
        file.write("def g(a):\n    b = a\n    return b\n")
    with pytest.raises(AnamorphError, match="not what they were"):
        load_task(**{**task.spec, "cache": str(tmp_path / "cache")})


def test_without_unseen_repositories_some_are_held_out(tmp_path: Path) -> None:
    corpus = write_sources(tmp_path)
    for number in range(4):
        (tmp_path / "c" / f"r{number}").mkdir()
        text = (tmp_path / "c" / "one" / "a.c").read_text("utf-8")
        (tmp_path / "c" / f"r{number}" / "a.c").write_text(
            text.replace(";", f"; {'-' * (number + 1)}a;"), "utf-8"
        )
    del corpus["unseen"]
    task = make(corpus, str(tmp_path / "cache"))
    assert task.spec["splits"]["unseen_repository"]["repositories"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test": 1}, "test must be a whole number from 2; got 1"),
        ({"unit": "words"}, "unit must be one of characters, bytes; got 'words'"),
        ({"language": "java"}, r"no file of java"),
        ({"corpus": {"python": "x"}}, "must have one to train on"),
        ({"corpus": "nowhere"}, r"no recipe 'nowhere'; there are: demo, paper"),
        ({"train": "many"}, "train must be a whole number"),
        ({"corpus": 3}, "corpus must be a recipe's name.*got 3"),
        ({"corpus": {"train": 3}}, "corpus must be a recipe's name"),
        ({"corpus": {}}, "named train; got none"),
        ({"languages": "python"}, r"languages must be a list of names.*got \'python\'"),
        ({"languages": 3}, "languages must be a list"),
        ({"cache": 3}, "cache must be a folder; got 3"),
    ],
)
def test_bad_arguments(
    corpus: dict[str, str], cache: str, arguments: dict[str, Any], message: str
) -> None:
    given = {"language": "c", "corpus": corpus, "cache": cache} | arguments
    with pytest.raises(AnamorphError, match=message):
        load_task("code", **given)


def test_what_is_trained_on_cannot_be_unseen(corpus: dict[str, str], cache: str) -> None:
    inside = str(Path(corpus["train"]) / "one")
    for unseen in (corpus["train"], inside, str(Path(corpus["train"]).parent)):
        with pytest.raises(AnamorphError, match="overlap"):
            make(corpus | {"unseen": unseen}, cache)


def test_nothing_out_of_distribution_is_an_error(corpus: dict[str, str], cache: str) -> None:
    with pytest.raises(AnamorphError, match=r"nothing to compare with.*--ood"):
        make({"train": corpus["train"]}, cache)


def test_copies_of_train_alone_are_too_few(tmp_path: Path) -> None:
    corpus = write_sources(tmp_path)
    function = "int add(int first, int second) {\n    int {name} = first;\n    return {name};\n}\n"
    for number, name in enumerate("abc"):
        path = tmp_path / "c" / ("one", "two", "three")[number] / "a.c"
        text = "\n".join(function.replace("{name}", f"{name}{i}") for i in range(40))
        path.write_text(text, "utf-8")
    for train in (10_000, 30):  # the corpus is as large, however little is asked for
        with pytest.raises(AnamorphError, match=r"120 functions of 3.*\d+ held out, 0 left\)"):
            make(corpus, str(tmp_path / "cache"), train=train)


def test_a_language_without_functions_is_named(tmp_path: Path) -> None:
    corpus = write_sources(tmp_path)
    (tmp_path / "py" / "a.py").write_text("x = 1\n", "utf-8")
    with pytest.warns(UserWarning, match="no split python: of 0 functions"):
        task = make(corpus, str(tmp_path / "cache"))
    assert "python" not in task.splits
