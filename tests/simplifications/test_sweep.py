"""Proxies by head and layer, where heads share keys and values: nothing asked for is lost."""

import pytest

import anamorph as am
from anamorph.models.sites import Site, match_sites
from anamorph.simplifications import expand


def sites(heads: int, keys: int, values: int, layers: tuple[int, ...] = (0, 1)) -> list[Site]:
    counts = {"query": heads, "key": keys, "value": values, "pattern": heads}
    return [Site(i, h, kind) for i in layers for kind, n in counts.items() for h in range(n)]


def test_heads_that_do_not_exist_are_refused_before_anything_is_split() -> None:
    with pytest.raises(am.AnamorphError, match=r"no site 1\.4\.key, which.*share keys and values"):
        am.sweep(["svd(rank=2)@1.{0,4}.{query,key}"], sites(8, 2, 2))
    with pytest.raises(am.AnamorphError, match=r"no site 7\.\*\.query"):
        am.sweep(["svd(rank=2)@0-7.*.query"], sites(8, 2, 2), "layer")


@pytest.mark.parametrize(("keys", "values"), [(8, 8), (2, 2), (4, 2), (1, 4), (2, 8)])
@pytest.mark.parametrize("spec", ["*.*.{query,key,value}", "1.*.{key,value}", "0.{0,1}.query"])
def test_every_site_asked_for_is_in_a_proxy_with_a_head_that_reads_it(
    keys: int, values: int, spec: str
) -> None:
    of_model = sites(8, keys, values)
    found: set[Site] = set()
    for proxy in am.sweep([f"svd(rank=2)@{spec}"], of_model):
        here = {s for a in proxy.attachments for s in match_sites(a.sites, of_model)}
        readers = [
            {s.head * 8 // n + i for i in range(8 // n)}
            for s in here
            for n in [{"query": 8, "key": keys, "value": values}[s.kind]]
            if s.head is not None
        ]
        assert set.intersection(*readers)  # one head reads all that its proxy edits
        found |= here
    assert found == set(match_sites(spec, of_model))


def test_layers_may_have_other_numbers_of_heads() -> None:
    of_model = [*sites(8, 2, 2, (0,)), *sites(4, 4, 4, (1,))]
    texts = [str(p) for p in am.sweep(["svd(rank=2)@*.*.{query,key}"], of_model)]
    assert len(texts) == 12
    assert texts[7] == "svd(rank=2)@0.7.query;svd(rank=2)@0.1.key"
    assert texts[11] == "svd(rank=2)@1.3.{query,key}"


def test_heads_that_cannot_share_evenly_are_not_guessed() -> None:
    with pytest.raises(am.AnamorphError, match="Layer 0 has 6 heads and 4 of key"):
        am.sweep(["svd(rank=2)@0.*.{query,key}"], sites(6, 4, 4))


def test_one_spec_may_stand_alone_and_each_proxy_counts_once() -> None:
    spec = "svd(rank=[2,2,3])@0.*.query"
    assert am.sweep(spec, sites(2, 2, 2), "all") == am.sweep([spec, spec], sites(2, 2, 2), "all")
    assert len(am.sweep(spec, sites(2, 2, 2))) == 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("svd(rank=[])@0.*.query", "expected a value"),
        ("svd(rank=nan)@0.*.query", "rank must be a whole number"),
        ("svd(rank=1.5)@0.*.query", "rank must be a whole number"),
        ("kmeans(clusters=0)@0.*.query", "clusters must be"),
        ("kmeans(clusters=2, seed=-1)@0.*.query", "seed must be"),
        ("svd(rank=2)@1 0.*.query", "Cannot attach|Cannot read"),
        ("svd(rank=2)@\uff10.*.query", "Cannot attach|Cannot read|no site"),
    ],
)
def test_numbers_and_places_that_make_no_sense(spec: str, message: str) -> None:
    with pytest.raises(am.AnamorphError, match=message):
        for proxy in expand(spec):
            for attachment in proxy.attachments:
                match_sites(attachment.sites, sites(2, 2, 2))


def test_spaces_between_places_mean_nothing() -> None:
    (proxy,) = expand("svd(rank=2) @ 0 . { 0 , 1 } . {query, key}")
    assert str(proxy) == "svd(rank=2)@0.{0,1}.{query,key}"
