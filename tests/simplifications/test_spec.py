"""Spec strings and the objects that they name."""

from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.simplifications import (
    PCA,
    SVD,
    Attachment,
    KMeans,
    OneHot,
    Simplification,
    Simplified,
    check_readable,
    expand,
    find_simplification,
    parse,
    registry,
)

QK = "1.*.{query,key}"


@pytest.mark.parametrize(
    ("text", "proxy"),
    [
        ("identity", Simplified(())),
        ("svd(rank=4)@1.*.{query,key}", Simplified((SVD(rank=4) @ QK,))),
        ("onehot@*.*.pattern", Simplified((OneHot() @ "*.*.pattern",))),
        (
            "pca(rank=2, joint=true)@0-1.0.key",
            Simplified((PCA(rank=2).at("0-1.0.key", joint=True),)),
        ),
        ("onehot(joint=true)@0.0.pattern", Simplified((OneHot().at("0.0.pattern", joint=True),))),
        ("svd(rank=4, on=far)@1.0.key", Simplified((SVD(rank=4).at("1.0.key", on="far"),))),
        (
            "svd(rank=4, on=train[0::2]+far)@1.0.key",
            Simplified((SVD(rank=4).at("1.0.key", on="train[0::2]+far"),)),
        ),
        (
            "svd(rank=8, joint=true, on=un-seen.1)+kmeans(clusters=64)@1.*.{query,key}",
            Simplified(((SVD(rank=8) + KMeans(clusters=64)).at(QK, joint=True, on="un-seen.1"),)),
        ),
        (
            "svd(rank=8, joint=true)+kmeans(clusters=64, seed=3)@1.*.{query,key}",
            Simplified(((SVD(rank=8) + KMeans(clusters=64, seed=3)).at(QK, joint=True),)),
        ),
        (
            "svd(rank=4)@1.*.{query,key};onehot@1.*.pattern",
            SVD(rank=4) @ QK & OneHot() @ "1.*.pattern",
        ),
    ],
)
def test_text_and_proxy_name_each_other(text: str, proxy: Simplified) -> None:
    assert str(proxy) == text
    assert parse(text) == [proxy]


def test_white_space_and_empty_brackets_do_not_matter() -> None:
    loose = (
        " svd ( rank = 4 )+ pca( rank=2 ,joint = true) @ 1.*.{query, key} ; onehot() @1.*.pattern "
    )
    (proxy,) = parse(loose)
    assert str(proxy) == "svd(rank=4, joint=true)+pca(rank=2)@1.*.{query,key};onehot@1.*.pattern"


def test_lists_stand_for_one_proxy_each() -> None:
    text = "svd(rank=[1,2], joint=[true,false])@0.0.key;kmeans(clusters=[4,8])@1.0.key"
    assert list(map(str, parse(text))) == [
        f"svd(rank={rank}{joint})@0.0.key;kmeans(clusters={clusters})@1.0.key"
        for rank in (1, 2)
        for joint in (", joint=true", "")
        for clusters in (4, 8)
    ]


def test_a_list_holds_slices_and_the_training_split_needs_no_name() -> None:
    text = "svd(rank=2, on=[train, far[::-1], near+far[:20:3]])@0.0.key"
    assert list(map(str, parse(text))) == [
        "svd(rank=2)@0.0.key",
        "svd(rank=2, on=far[::-1])@0.0.key",
        "svd(rank=2, on=near+far[:20:3])@0.0.key",
    ]


def test_python_binds_at_before_plus_and_it_means_the_same() -> None:
    assert SVD(rank=8) + KMeans(clusters=64) @ QK == (SVD(rank=8) + KMeans(clusters=64)) @ QK


def test_and_joins_attachments_and_proxies() -> None:
    a, b, c = (SVD(rank=1) @ f"{layer}.0.key" for layer in range(3))
    assert (
        a & b & c == a & (b & c) == Simplified((a, b, c)) == Simplified((a,)) & Simplified((b, c))
    )


@pytest.mark.parametrize(
    ("text", "method", "size", "sites"),
    [
        ("identity", "identity", None, ""),
        ("svd(rank=4)@1.*.key", "svd", 4.0, "1.*.key"),
        ("svd(rank=4)+kmeans(clusters=8)@1.*.key", "svd+kmeans", None, "1.*.key"),
        ("svd(rank=4)+kmeans(clusters=4)@1.*.key", "svd+kmeans", None, "1.*.key"),
        (
            "kmeans(clusters=8)@1.*.key;onehot@1.*.pattern",
            "kmeans; onehot",
            8.0,
            "1.*.key;1.*.pattern",
        ),
        ("svd(rank=4)@0.*.key;svd(rank=4)@1.*.key", "svd", 4.0, "0.*.key;1.*.key"),
        ("svd(rank=4)@0.*.key;svd(rank=2)@1.*.key", "svd", None, "0.*.key;1.*.key"),
    ],
)
def test_the_columns_of_a_proxy(text: str, method: str, size: float | None, sites: str) -> None:
    (proxy,) = parse(text)
    assert (proxy.method, proxy.size, proxy.sites) == (method, size, sites)


@pytest.mark.parametrize(
    ("text", "family", "size_name"),
    [
        ("identity", "identity", None),
        ("onehot@1.*.pattern", "onehot@1.*.pattern", None),
        ("svd(rank=4)@1.*.key", "svd@1.*.key", "rank"),
        ("svd(rank=4, joint=true)@1.*.{query,key}", "svd(joint=true)@1.*.{query,key}", "rank"),
        ("kmeans(clusters=7, seed=7)@0.mlp", "kmeans(seed=7)@0.mlp", "clusters"),
        ("svd(rank=2)@0.*.key;svd(rank=2)@1.*.key", "svd@0.*.key;svd@1.*.key", "rank"),
        (
            "svd(rank=4)@0.*.key;kmeans(clusters=4)@1.*.key",
            "svd(rank=4)@0.*.key;kmeans(clusters=4)@1.*.key",
            None,
        ),
        ("svd(rank=4)+pca(rank=4)@0.*.value", "svd+pca@0.*.value", "rank"),
    ],
)
def test_a_family_is_the_text_without_the_size(
    text: str, family: str, size_name: str | None
) -> None:
    (proxy,) = parse(text)
    assert (proxy.family, proxy.size_name) == (family, size_name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at its end: expected the name of a simplification"),
        ("svd(rank=4)", "expected '@' and sites"),
        ("svd(rank=4)@", "expected sites"),
        ("svd(rank=4)@1.0.key;", "expected the name"),
        ("svd(rank=4)@1.0.key)", r"before '\)': expected ';' and another attachment"),
        ("svd(rank=)@1.0.key", "expected a value"),
        ("svd(rank=[])@1.0.key", "expected a value"),
        ("svd(rank=[1,2)@1.0.key", r"expected ',' or '\]'"),
        ("svd(rank=4@1.0.key", r"expected ',' or '\)'"),
        ("svd(rank 4)@1.0.key", "expected '=' and a value"),
        ("svd(4)@1.0.key", "svd has no path, which a value without a name would be. Its param"),
        ("svd@1.0.key", "svd needs rank. Its parameters are: rank"),
        ("svd(ranks=4)@1.0.key", "svd has no ranks. Its parameters are: rank"),
        ("svd(rank=4, rank=5)@1.0.key", "gives rank of svd twice"),
        ("svd(rank=-1)@1.0.key", "rank must be a whole number"),
        ("svd(rank=four)@1.0.key", "rank must be a whole number.*got 'four'"),
        ("svd(rank=4, on=2020)@1.0.key", "on must be the name of a split; got 2020"),
        ("svd(rank=4, on=a)+pca(rank=2, on=b)@1.0.key", "both on=a and on=b"),
        ("linear+svd(rank=4)@1.mlp", "linear needs a site of its own"),
        ("svd(rank=4, joint=1)@1.0.key", "joint must be true or false; got 1"),
        (
            "svd(rank=4,joint=true)+pca(rank=2,joint=false)@1.0.key",
            "both joint=true and joint=false",
        ),
        (
            "nonsense(rank=4)@1.0.key",
            "no simplification 'nonsense'; there are: .*kmeans, linear, .*onehot, pca, .*svd",
        ),
        ("svd(rank=__import__('os'))@1.0.key", r"before \"\('os'\)\)@1.0.key\""),
    ],
)
def test_what_cannot_be_read_says_why(text: str, message: str) -> None:
    with pytest.raises(AnamorphError, match=message):
        parse(text)


def test_splits_that_a_spec_cannot_name() -> None:
    with pytest.raises(AnamorphError, match=r"Cannot fit on 'a b'.*rename the split"):
        SVD(rank=4).at("1.0.key", on="a b")
    assert "on=far" in str(SVD(rank=1) + KMeans(clusters=2).at("1.0.key", on="far"))


def test_sites_that_cannot_be_a_pattern() -> None:
    with pytest.raises(AnamorphError, match="Cannot attach svd"):
        SVD(rank=4) @ "1.0.key;1.0.query"


simplifications = st.one_of(
    st.builds(SVD, rank=st.integers(1, 99)),
    st.builds(PCA, rank=st.integers(1, 99)),
    st.builds(KMeans, clusters=st.integers(1, 99), seed=st.integers(0, 2**32 - 1)),
)
attachments = st.builds(
    lambda parts, sites, joint: sum(parts[1:], parts[0]).at(sites, joint=joint),
    st.lists(simplifications, min_size=1, max_size=3),
    st.sampled_from(["1.0.key", QK, "*.*.value", "0-3.{0,2-4}.output", "2.mlp"]),
    st.booleans(),
)


@given(st.lists(attachments, max_size=3))
def test_every_proxy_is_named_by_its_text(attached: list[Attachment]) -> None:
    proxy = Simplified(tuple(attached))
    assert parse(str(proxy)) == [proxy]


@given(st.text(alphabet="svdkmean(),=[];@+.*{}1 -e_", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        proxies = parse(text)
    except AnamorphError:
        return
    assert [parse(str(proxy)) for proxy in proxies] == [[proxy] for proxy in proxies]


class Round(Simplification):
    """Rounds to a step: something that another package might add."""

    name = "round"
    size_name = "step"

    def __init__(self, *, step: float, up: bool = False, mode: str = "plain") -> None:
        self.step = step
        self.up = up
        self.mode = mode

    def statistic(self, dim: int) -> None:
        return None

    def learn(self, statistic: object) -> Self:
        return self

    def __call__(self, x: Tensor) -> Tensor:
        return (x / self.step).round() * self.step


def test_values_of_every_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.SIMPLIFICATIONS, "round", Round)
    for step, text in [(0.5, "0.5"), (1e-05, "1e-05"), (1e16, "1e+16"), (-2, "-2"), (3.0, "3.0")]:
        proxy = Simplified((Round(step=step, up=True, mode="half_even") @ "0.mlp",))
        assert str(proxy) == f"round(step={text}, up=true, mode=half_even)@0.mlp"
        assert parse(str(proxy)) == [proxy]
    (given_false,) = parse("round(step=.5, up=false)@0.mlp")
    assert given_false.attachments[0].simplification.get_params()["up"] is False


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        ("maps/a.safetensors", "maps/a.safetensors"),
        ("../0/a", "../0/a"),
        (r"C:\maps\a", r"C:\maps\a"),
        ("half_even", "half_even"),
        ("my maps/a,b@1;c=(d)", '"my maps/a,b@1;c=(d)"'),
        ('a "b" \\', r'"a \"b\" \\"'),
        ("12", '"12"'),
        ("1e3", '"1e3"'),
        ("true", '"true"'),
        ("", '""'),
    ],
)
def test_text_and_paths_as_values(monkeypatch: pytest.MonkeyPatch, mode: str, text: str) -> None:
    monkeypatch.setitem(registry.SIMPLIFICATIONS, "round", Round)
    proxy = Simplified((Round(step=2, mode=mode) @ "0.mlp",))
    assert str(proxy) == f"round(step=2, mode={text})@0.mlp"
    (again,) = parse(f" round( mode = {text} ,step=2) @0.mlp")
    assert again.attachments[0].simplification.get_params()["mode"] == mode
    check_readable([proxy])


def test_paths_that_need_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.SIMPLIFICATIONS, "round", Round)
    with pytest.raises(AnamorphError, match=r"before '\[a\]\)@0.mlp': expected ',' or '\)'"):
        parse("round(step=2, mode=maps[a])@0.mlp")
    with pytest.raises(AnamorphError, match=r"expected a value.* text, which needs double quotes"):
        parse("round(step=2, mode='maps')@0.mlp")
    with pytest.raises(AnamorphError, match="as in JSON, a backslash as two"):
        parse(r'round(step=2, mode="C:\maps")@0.mlp')


class EntryPoint:
    def __init__(self, name: str, found: object) -> None:
        self.name, self.value, self.found = name, "package:thing", found

    def load(self) -> object:
        return self.found


def test_other_packages_add_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = [EntryPoint("round", Round), EntryPoint("number", 3), EntryPoint("other", Round)]
    monkeypatch.setattr(
        registry,
        "entry_points",
        lambda group, name=None: [e for e in offered if name in (None, e.name)],
    )
    assert find_simplification("round") is Round
    with pytest.raises(AnamorphError, match="not a subclass of Simplification"):
        find_simplification("number")
    with pytest.raises(AnamorphError, match="calls itself 'round'"):
        find_simplification("other")
    with pytest.raises(
        AnamorphError, match=r"there are: .*linear, .*number, .*other, .*round, .*svd"
    ):
        find_simplification("square")


def test_expand_takes_all_that_names_a_proxy_and_each_once() -> None:
    specs: list[str | Attachment | Simplified] = [
        "svd(rank=[1,2])@0.0.key",
        SVD(rank=2) @ "0.0.key",
        Simplified(()),
        "identity",
    ]
    assert list(map(str, expand(specs))) == [
        "svd(rank=1)@0.0.key",
        "svd(rank=2)@0.0.key",
        "identity",
    ]
    assert expand("identity") == expand(Simplified(())) == [Simplified(())]
    assert expand(SVD(rank=2) @ "0.0.key") == [Simplified((SVD(rank=2) @ "0.0.key",))]
    with pytest.raises(AnamorphError, match="attached to sites"):
        expand([SVD(rank=2)])  # type: ignore[list-item]
    with pytest.raises(AnamorphError, match="is not a proxy"):
        expand(SVD(rank=2))
