"""Which sites a pattern names, by hand."""

import pytest

from anamorph.errors import AnamorphError
from anamorph.models.sites import Site, describe_sites, match_sites

# Eleven layers, so that text and number order differ.
SITES = [
    *(
        Site(layer, head, kind)
        for layer in range(11)
        for head in range(3)
        for kind in ("query", "key")
    ),
    *(Site(layer, None, "mlp") for layer in range(11)),
]


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("1.0.query", "1.0.query"),
        ("1.2.*", "1.2.query 1.2.key"),
        ("0.*.key", "0.0.key 0.1.key 0.2.key"),
        ("9-10.1.key", "9.1.key 10.1.key"),
        ("{0,10}.1-2.{key}", "0.1.key 0.2.key 10.1.key 10.2.key"),
        ("1.{0,2}.{key,query}", "1.0.query 1.0.key 1.2.query 1.2.key"),
        ("{0-1,3}.0.key", "0.0.key 1.0.key 3.0.key"),
        ("1.{ 0 , 2 }.key", "1.0.key 1.2.key"),
        (" 1.0.key ", "1.0.key"),
        ("3.mlp", "3.mlp"),
        ("9-10.{mlp,residual}", "9.mlp 10.mlp"),
        ("4.*", "4.mlp"),  # two places never mean heads
    ],
)
def test_a_pattern_names_its_sites(pattern: str, named: str) -> None:
    assert " ".join(map(str, match_sites(pattern, SITES))) == named


def test_everything() -> None:
    assert len(match_sites("*.*.*", SITES)) == 66
    assert len(match_sites("*.*", SITES)) == 11


def test_a_head_is_not_a_layer() -> None:
    with pytest.raises(AnamorphError, match="no site"):
        match_sites("*.*.mlp", SITES)
    with pytest.raises(AnamorphError, match="no site"):
        match_sites("*.query", SITES)


@pytest.mark.parametrize("pattern", ["11.0.key", "1.3.key", "1.0.keys", "2-1.0.key", "01.0.key"])
def test_a_pattern_without_sites_is_an_error_that_lists_them(pattern: str) -> None:
    with pytest.raises(AnamorphError) as error:
        match_sites(pattern, SITES)
    assert str(error.value) == (
        f"The model has no site '{pattern}'. Its sites are: 0-10.0-2.{{query,key}}, 0-10.mlp."
    )


@pytest.mark.parametrize("pattern", ["", "1", "key", "1.0.0.key", "1.0.key.extra", "...."])
def test_another_number_of_places_cannot_be_read(pattern: str) -> None:
    with pytest.raises(AnamorphError, match=r"expected layer\.head\.kind"):
        match_sites(pattern, SITES)


@pytest.mark.parametrize(
    "pattern", ["1.0.", "1.-1.key", "1.0-.key", "{1.0.key", "1.0.{query,}", "1.0.ke*"]
)
def test_places_that_make_no_sense_cannot_be_read(pattern: str) -> None:
    with pytest.raises(AnamorphError, match=r"Cannot read .* in the site|expected layer\.head"):
        match_sites(pattern, SITES)


def test_sites_in_a_few_words() -> None:
    assert describe_sites([Site(2, 0, "key")]) == "2.0.key"
    assert describe_sites([Site(0, 0, "key"), Site(0, 1, "key"), Site(0, None, "mlp")]) == (
        "0.0-1.key, 0.mlp"
    )
