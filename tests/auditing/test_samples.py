"""What is fitted on, and that nothing of it is scored."""

import warnings
from itertools import chain

import numpy as np
import pytest

import anamorph as am
from anamorph.auditing.audit import described
from anamorph.auditing.samples import fit_data, scored_task
from anamorph.simplifications import expand
from anamorph.tasks import Split, Task
from anamorph.tasks.fitted_on import FittedOn

Rows = list[tuple[int, ...]]


def split(name: str, rows: Rows) -> Split:
    tokens = np.concatenate([np.array(row, np.int16) for row in rows])
    offsets = np.cumsum([0, *map(len, rows)])
    scored = np.ones(len(tokens), bool)
    scored[offsets[:-1]] = False
    role = name if name in ("train", "iid") else "ood"
    return Split(name, role, tokens, offsets, scored)


@pytest.fixture(scope="module")
def rows() -> dict[str, Rows]:
    """Sequences so short that many are alike, within and between splits."""
    rng = np.random.default_rng(0)
    return {
        name: [tuple(rng.integers(1, 5, rng.integers(2, 5)).tolist()) for _ in range(count)]
        for name, count in {"train": 11, "iid": 40, "near": 30, "far": 30}.items()
    }


@pytest.fixture(scope="module")
def few(rows: dict[str, Rows]) -> Task:
    splits = {name: split(name, some) for name, some in rows.items()}
    return Task("few", {}, tuple("?abcd"), np.arange(1, 5), splits)


def fitted(task: Task, on: str, sequences: int) -> Rows:
    """The sequences that a proxy is fitted on."""
    specs = expand(f"svd(rank=1, on={on})@0.0.key")
    (batches,) = [b for name, b in fit_data(task, sequences, specs).items() if name == on]
    return [
        tuple(tokens[mask].tolist())
        for batch in batches
        for tokens, mask in zip(batch.tokens, batch.mask, strict=True)
    ]


def scored(task: Task, *on: str) -> dict[str, Rows]:
    specs = expand([f"svd(rank=1, on={each})@0.0.key" for each in on])
    evaluated = scored_task(task, specs).evaluated
    return {s.name: [tuple(tokens.tolist()) for tokens in s] for s in evaluated}


@pytest.mark.parametrize("text", ["", "[0::2]", "[1::2]", "[:3]", "[-4:]", "[::-3]", "[2:9:2]"])
def test_a_slice_is_pythons(text: str, few: Task, rows: dict[str, Rows]) -> None:
    of_train = eval(f"rows['train']{text}")
    of_far = eval(f"rows['far']{text or '[1::2]'}")  # the others are there to be scored
    for most in (2, 100):
        if text:
            assert fitted(few, f"train{text}", most) == of_train[:most]
        assert fitted(few, f"far{text}", most) == of_far[:most]


def test_a_mixture_has_as_many_of_each_in_turn(few: Task, rows: dict[str, Rows]) -> None:
    each = zip(rows["train"][:3], rows["far"][1:6:2], strict=True)
    assert fitted(few, "train+far", 6) == fitted(few, "train+far", 5) == list(chain(*each))
    three = zip(rows["train"], rows["near"][:22:2], rows["iid"][1:23:2], strict=True)
    assert fitted(few, "train+near[::2]+iid", 1000) == list(chain(*three))  # no more than train has


def test_nothing_is_scored_that_is_fitted_on(few: Task, rows: dict[str, Rows]) -> None:
    on = {"far": rows["far"][1::2], "train+near[:7]": rows["near"][:7], "train[0::2]": []}
    for names in (["far"], ["train+near[:7]"], [*on], ["train[0::2]"]):
        taken = set(chain(*(on[name] for name in names)))
        left = {
            name: [row for row in some if row not in taken]
            for name, some in rows.items()
            if name != "train"
        }
        assert scored(few, *names) == left
    assert sum(map(len, scored(few, "far").values())) < 85  # in other splits too
    assert scored_task(few, expand("svd(rank=1, on=train[0::2])@0.0.key")) is few


@pytest.mark.parametrize(
    ("on", "message"),
    [
        ("far[:]", r"Nothing of the split 'far' is left to be scored.*on=far\[1::2\]"),
        ("nowhere", "no split 'nowhere' to fit on; there are: train, iid, near, far"),
        ("train+nowhere", "no split 'nowhere' to fit on"),
        ("far[30:]", r"nothing to fit on in far\[30:\]: the split has 30 sequences"),
    ],
)
def test_what_cannot_be_fitted_on(few: Task, on: str, message: str) -> None:
    with pytest.raises(am.AnamorphError, match=message):
        scored(few, on)


def test_the_training_split_has_one_name(rows: dict[str, Rows]) -> None:
    java = Split(**{**vars(split("train", rows["train"])), "name": "java"})
    splits = {"java": java, "iid": split("iid", rows["iid"])}
    task = Task("few", {}, tuple("?abcd"), np.arange(1, 5), splits)
    assert fitted(task, "train[1::2]", 9) == rows["train"][1::2]
    with pytest.raises(am.AnamorphError, match=r"'java' is the training split.*on=train\[:2\]"):
        scored(task, "java[:2]")


@pytest.mark.parametrize("on", ["a b", "far[1]", "far[::0]", "far+", "[0::2]", "far[a:]", "+far"])
def test_what_on_cannot_be(on: str) -> None:
    with pytest.raises(am.AnamorphError, match="Cannot fit on"):
        FittedOn.read(on)


def test_controls_are_of_the_family_of_their_view() -> None:
    specs = expand(
        [
            "svd(rank=[1,2], on=[train,far,train[0::2],train+far,far+near])@1.*.key",
            "svd(rank=2, on=far)@0.*.key",  # without a view beside it
            "kmeans(clusters=4)@1.*.key;svd(rank=4, on=far)@0.*.value",
            "kmeans(clusters=4)@1.*.key;svd(rank=4)@0.*.value",
            "pca(rank=2, keep=1)@1.mlp",
            "random(rank=2, keep=1)@1.mlp",
            "random(rank=2)@1.mlp",  # it changes what the view leaves
        ]
    )
    found = {p.simplification: (p.family, p.control) for p in described(specs)}
    of_view = "svd@1.*.key"
    both = "kmeans(clusters=4)@1.*.key;svd(rank=4)@0.*.value"
    expected: dict[str, tuple[str, str | None]] = {}
    for rank in (1, 2):
        expected |= {
            f"svd(rank={rank})@1.*.key": (of_view, None),
            f"svd(rank={rank}, on=far)@1.*.key": (of_view, "oracle"),
            f"svd(rank={rank}, on=train[0::2])@1.*.key": (of_view, "half"),
            f"svd(rank={rank}, on=train+far)@1.*.key": ("svd(on=train+far)@1.*.key", None),
            f"svd(rank={rank}, on=far+near)@1.*.key": (of_view, "oracle"),
        }
    expected["svd(rank=2, on=far)@0.*.key"] = ("svd(on=far)@0.*.key", None)
    expected[str(specs[-5])], expected[both] = (both, "oracle"), (both, None)
    expected["pca(rank=2, keep=1)@1.mlp"] = ("pca(keep=1)@1.mlp", None)
    expected["random(rank=2, keep=1)@1.mlp"] = ("random(keep=1)@1.mlp", "random")
    expected["random(rank=2)@1.mlp"] = ("random@1.mlp", None)
    assert found == expected


def test_who_fits_is_told_of_each_batch(monkeypatch: pytest.MonkeyPatch, few: Task) -> None:
    monkeypatch.setattr("anamorph.auditing.samples.FIT_TOKENS", 8)
    told: list[tuple[int, int]] = []
    specs = expand(["svd(rank=1)@0.0.key", "svd(rank=1, on=far)@0.0.key"])
    data = fit_data(few, 6, specs, lambda *at: told.append(at))
    read = [batch for batches in data.values() for batch in batches]
    assert len(read) > 2
    assert told == [(number, len(read)) for number in range(1, len(read) + 1)]


@pytest.mark.parametrize(
    ("on", "number"),
    [
        ("far", None),  # half of it is more than the eight of `train`
        ("far[:5]", 5),
        ("far[:2]+train", 4),
        ("train[:3]", None),  # who asks for fewer knows it
    ],
)
def test_fewer_to_fit_on_than_a_view_has_are_told(few: Task, on: str, number: int | None) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(fitted(few, on, 8)) == number or number is None
    told = [str(each.message) for each in caught]
    assert len(told) == (number is not None)
    if number is not None:
        assert f"8 sequences of 'train' to fit on, but on={on} has {number}" in told[0]
        assert f"fitted on train[:{number}]" in told[0]
