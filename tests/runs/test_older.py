"""What is made of tables that an earlier version wrote."""

import polars as pl
import pytest

from anamorph.runs.older import split_size, with_families
from anamorph.simplifications import parse


@pytest.mark.parametrize(
    ("spec", "size", "rest", "name"),
    [
        ("svd(rank=4)@1.*.{query,key}", 4.0, "svd@1.*.{query,key}", "rank"),
        ("svd(rank=4, joint=true)@0.*.key", 4.0, "svd(joint=true)@0.*.key", "rank"),
        ("kmeans(clusters=16, seed=1)@3.mlp", 16.0, "kmeans(seed=1)@3.mlp", "clusters"),
        ("kmeans(seed=1, clusters=16)@3.mlp", 16.0, "kmeans(seed=1)@3.mlp", "clusters"),
        ("onehot@1.*.pattern", None, "onehot@1.*.pattern", None),
        ("svd(rank=4)@1.*.key;onehot@1.*.pattern", 4.0, "svd@1.*.key;onehot@1.*.pattern", "rank"),
        ("svd(rank=2)@1.1.query;svd(rank=2)@1.0.key", 2, "svd@1.1.query;svd@1.0.key", "rank"),
        (
            "svd(rank=2)@1.0.key;pca(rank=20)@1.0.query",
            2,
            "svd@1.0.key;pca(rank=20)@1.0.query",
            "rank",
        ),
        ("svd(rank=4)@0.*.key;svd(rank=4)@1.*.key", 4, "svd@0.*.key;svd@1.*.key", "rank"),
        ("mine(words=1e6)@3.mlp", 1e6, "mine@3.mlp", "words"),
        ("mine(words=1000000)@3.mlp", 1e6, "mine@3.mlp", "words"),
        ("kmeans(seed=16, clusters=16)@3.mlp", 16, "kmeans(seed=16)@3.mlp", "clusters"),
        (
            "svd(rank=4)+kmeans(clusters=16)@3.mlp",
            None,
            "svd(rank=4)+kmeans(clusters=16)@3.mlp",
            None,
        ),
        ("svd(rank=1)@1.*.key;pca(rank=10)@1.*.key", 1, "svd@1.*.key;pca(rank=10)@1.*.key", "rank"),
    ],
)
def test_split_size(spec: str, size: float | None, rest: str, name: str) -> None:
    assert split_size(spec, size) == (rest, name)


def test_families_are_those_of_the_specification() -> None:
    """As newer tables have them, from the parsed spec."""
    texts = [
        "svd(rank=4, joint=true)@1.*.{query,key}",
        "onehot@1.*.pattern",
        "pca(rank=3)@*.*.value",
    ]
    texts += ["svd(rank=2)@0.*.key;svd(rank=2)@1.*.key", "kmeans(clusters=8)@0.mlp"]
    proxies = [parse(text)[0] for text in texts]
    table = pl.DataFrame({"simplification": map(str, proxies), "size": [p.size for p in proxies]})
    found = with_families(table)
    assert found["family"].to_list() == [p.family for p in proxies]
    assert found["size_name"].to_list() == [p.size_name for p in proxies]
    assert with_families(found).equals(found)
