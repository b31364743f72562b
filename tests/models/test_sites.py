"""Which sites a pattern names, by hand."""

import pytest

from anamorph.errors import AnamorphError
from anamorph.models.sites import NAMED_KINDS, NORM_KINDS, Site, describe_sites, match_sites

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
        ("9-10.{mlp}", "9.mlp 10.mlp"),
        ("{*}.mlp", " ".join(f"{i}.mlp" for i in range(11))),
        ("4.*", "4.mlp"),  # two places never mean heads
    ],
)
def test_a_pattern_names_its_sites(pattern: str, named: str) -> None:
    assert " ".join(map(str, match_sites(pattern, SITES))) == named


def test_everything() -> None:
    assert len(match_sites("*.*.*", SITES)) == 66
    assert len(match_sites("*.*", SITES)) == 11


def test_norm_stands_for_all_norms_that_a_layer_has() -> None:
    norms = [Site(layer, None, kind) for layer in (0, 1) for kind in NORM_KINDS[1:3]]
    norms.append(Site(1, None, "norm_final"))
    every = [*SITES, *norms, Site(0, None, "mlp_input")]
    assert match_sites("*.norm", every) == norms
    assert match_sites("0.{norm,mlp}", every) == [Site(0, None, "mlp"), *norms[:1], norms[1]]
    assert match_sites("*.norm_final", every) == norms[-1:]
    with pytest.raises(AnamorphError, match=r"no site 2\.norm"):
        match_sites("{0,2}.norm", [*every, Site(2, None, "mlp")])
    with pytest.raises(AnamorphError, match=r"no site '0\.norm_1'"):
        match_sites("0.norm_1", every)


def test_a_star_leaves_out_kinds_that_hold_again_what_others_hold() -> None:
    more = [Site(0, None, kind) for kind in ("residual", *NAMED_KINDS)]
    assert {"heads", "attention", "middle", "mlp_input", *NORM_KINDS} == NAMED_KINDS
    assert match_sites("0.*", [*SITES, *more]) == [Site(0, None, "mlp"), Site(0, None, "residual")]
    assert len(match_sites("0.{*,middle}", more)) == 2
    assert [site.kind for site in match_sites("*.{heads,mlp_input}", more)] == [
        site.kind for site in more if site.kind in ("heads", "mlp_input")
    ]
    with pytest.raises(AnamorphError, match=r"leaves out heads, attention.* and norm: name these"):
        match_sites("0.*", more[1:])
    with pytest.raises(AnamorphError, match=r"no site '1.\*'. Its sites are: [^:]*$"):
        match_sites("1.*", more)


def test_a_head_is_not_a_layer() -> None:
    with pytest.raises(AnamorphError, match="no site"):
        match_sites("*.*.mlp", SITES)
    with pytest.raises(AnamorphError, match="no site"):
        match_sites("*.query", SITES)


@pytest.mark.parametrize(
    "pattern", ["11.0.key", "1.3.key", "1.0.keys", "x.0.key", "01.0.key", "1.\uff10.key"]
)
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
    "pattern",
    [
        "1.0.",
        "1.-1.key",
        "1.0-.key",
        "{1.0.key",
        "1.0.{query,}",
        "1.0.ke*",
        "1 0.0.key",
        "\uff11-2.0.key",
        "00-3.0.key",
        "{0,{1,2}}.0.key",
    ],
)
def test_places_that_make_no_sense_cannot_be_read(pattern: str) -> None:
    with pytest.raises(AnamorphError, match=r"Cannot read .* in the site|expected layer\.head"):
        match_sites(pattern, SITES)


def test_sites_in_a_few_words() -> None:
    assert describe_sites([Site(2, 0, "key")]) == "2.0.key"
    assert describe_sites([Site(0, 0, "key"), Site(0, 1, "key"), Site(0, None, "mlp")]) == (
        "0.0-1.key, 0.mlp"
    )


SHARED = [
    *(Site(layer, head, "query") for layer in range(12) for head in range(8)),
    *(Site(layer, head, "key") for layer in range(12) for head in range(2)),
    *(Site(layer, head, "value") for layer in range(12) for head in range(2)),
    *(Site(layer, None, "residual") for layer in range(12)),
    *(Site(layer, None, "mlp") for layer in (3, 7)),
]


@pytest.mark.parametrize(
    ("pattern", "missing"),
    [
        ("9.{0,4}.{query,key}", "9.4.key"),
        ("*.{0,4}.{query,key}", "*.4.key"),
        ("*.0-7.{query,key}", "*.7.key"),
        ("0-99.0.query", "99.0.query"),
        ("{0,12}.0.query", "12.0.query"),
        ("{0-3,11-12}.*.query", "12.*.query"),
        ("9.{0,8}.query", "9.8.query"),
        ("9.6-8.query", "9.8.query"),
        ("9.0.{query,keys}", "9.0.keys"),
        ("9.*.{query,mlp}", "9.*.mlp"),
        ("0.0.{query,pattern,output}", "0.0.pattern, 0.0.output"),
        ("{3,4}.mlp", "4.mlp"),
        ("3-8.mlp", "8.mlp"),
        ("*.{mlp,residuals}", "*.residuals"),
        ("{0,20,21}.{0,9,10}.query", "0.9.query, 0.10.query, 20.0.query, 20.9.query, …"),
    ],
)
def test_what_is_named_and_not_there_is_refused_by_name(pattern: str, missing: str) -> None:
    with pytest.raises(AnamorphError) as error:
        match_sites(pattern, SHARED)
    assert f"The model has no site {missing}, which {pattern!r} names. Its sites" in str(
        error.value
    )
    assert ("share keys and values" in str(error.value)) == (
        "key" in missing and "s" not in missing
    )


@pytest.mark.parametrize(
    ("pattern", "number"),
    [
        ("*.*.*", 12 * 12),  # what there is
        ("9.4.*", 1),
        ("9.0.*", 3),
        ("*.*.{query,key}", 12 * 10),
        ("0-11.0-1.{query,key,value}", 12 * 6),
        ("3-7.mlp", 2),  # its ends are there
        ("*.*", 14),
        ("{3,5}.*", 3),
    ],
)
def test_a_star_and_what_lies_within_a_range_stand_for_what_there_is(
    pattern: str, number: int
) -> None:
    assert len(match_sites(pattern, SHARED)) == number


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("3-1.0.query", "The range 3-1 in the site .* runs backwards; write 1-3"),
        ("0.{0,1-0}.query", "runs backwards; write 0-1"),
        ("0.{1,1}.query", "names 1 twice"),
        ("0.{0-3,2-5}.query", "names what is in both 0-3 and 2-5 twice"),
        ("{0-3,2}.0.query", "names what is in both 0-3 and 2 twice"),
        ("0.0.{query,key,query}", "names query twice"),
    ],
)
def test_what_cannot_be_meant_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(AnamorphError, match=message):
        match_sites(pattern, SHARED)
