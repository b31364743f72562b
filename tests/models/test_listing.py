from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor

import anamorph as am
from anamorph.models.base import Edits, Ran, State
from anamorph.models.listing import group_sites, missing_sites
from anamorph.models.sites import match_sites
from huggingface_models import MODELS, MORE, make
from plain_modules import Transformer, large


def patterns(model: object) -> dict[str, tuple[int, str | None, int]]:
    grouped = group_sites(am.list_sites(model))  # type: ignore[arg-type]
    return {row[0]: row[1:] for row in grouped.iter_rows()}  # type: ignore[misc]


def test_sites_with_shape_and_firing() -> None:
    table = am.list_sites(am.HuggingFace(make("llama")))
    assert table.filter(site="2.1.key").row(0) == ("2.1.key", 2, 1, "key", "[position, 8]", 1)
    assert table.filter(site="0.mlp").row(0) == ("0.mlp", 0, None, "mlp", "[position, 32]", 1)
    assert len(table) == 3 * (4 + 2 + 2 + 4 + 4 + 1 + 1 + 4 + 2) + 1


def test_sites_that_are_alike_are_one_pattern() -> None:
    assert patterns(am.HuggingFace(make("llama"))) == {
        "0-2.0-3.query": (12, "[position, 8]", 1),
        "0-2.0-1.key": (6, "[position, 8]", 1),
        "0-2.0-1.value": (6, "[position, 8]", 1),
        "0-2.0-3.pattern": (12, "[query, key]", 1),
        "0-2.0-3.output": (12, "[position, 8]", 1),
        "0-2.residual": (3, "[position, 32]", 1),
        "0-2.mlp": (3, "[position, 32]", 1),
        "0-2.heads": (3, "[position, 32]", 1),
        "0-2.attention": (3, "[position, 32]", 1),
        "0-2.middle": (3, "[position, 32]", 1),
        "0-2.mlp_input": (3, "[position, 32]", 1),
        "0-2.norm_1": (3, "[position, 1]", 1),
        "0-2.norm_2": (3, "[position, 1]", 1),
        "2.norm_final": (1, "[position, 1]", 1),
    }


def test_layers_that_differ_stand_apart() -> None:
    model = am.HookedModel(
        large(Transformer(layers=5)),
        {
            "*.mlp": "blocks.*.mlp.2",
            "0.residual": am.Hook("blocks.0", columns=(0, 6)),
            "1.residual": "blocks.1",
            "2.residual": "blocks.2",
            "4.residual": "blocks.4",
            "3.*.output": am.Hook("blocks.3", heads=2),
        },
    )
    found = patterns(model)
    assert found == {
        "3.0-1.output": (2, "[position, 8]", 1),
        "0.residual": (1, "[position, 6]", 1),
        "{1-2,4}.residual": (3, "[position, 16]", 1),
        "0-4.mlp": (5, "[position, 16]", 1),
    }
    for pattern, (number, *_) in found.items():
        assert len(match_sites(pattern, model.sites)) == number


@pytest.mark.parametrize("name", [*MODELS, *MORE])
def test_every_site_of_every_family_fires_once(name: str) -> None:
    table = am.list_sites(am.HuggingFace(make(name)))
    assert table["fires"].unique().to_list() == [1]
    assert table["shape"].null_count() == 0


class Broken(am.Decoder):
    """Its first MLP goes nowhere, its second layer runs twice."""

    def layer(
        self, index: int, state: State, edits: Edits | None = None, record: Any = (), at: Any = None
    ) -> Ran:
        kept = {k: e for k, e in (edits or {}).items() if k != (0, "mlp")}
        left = [k for k in record if k != (0, "mlp")]
        if index == 1:
            super().layer(index, state, kept, left, at)
        return super().layer(index, state, kept, left, at)


def test_what_does_not_fire_once_is_seen() -> None:
    torch.manual_seed(0)
    config = am.DecoderConfig(vocabulary=9, context=5, heads=2, width=8)
    table = am.list_sites(Broken(config).eval())
    assert table.filter(site="0.mlp").select("shape", "fires").row(0) == (None, 0)
    assert table.filter(layer=1)["fires"].unique().to_list() == [2]
    assert table.filter(pl.col("layer") == 0, pl.col("kind") != "mlp")["fires"].max() == 1


def test_tokens_of_ones_own() -> None:
    seen: list[Tensor] = []
    model = am.HuggingFace(make("gpt2"))
    start = model.start
    model.start = lambda batch: (seen.append(batch.tokens), start(batch))[1]  # type: ignore
    given = torch.ones(2, 3, dtype=torch.long)
    am.list_sites(model, given)
    assert torch.equal(seen[0], given)


def test_what_is_missing_and_why() -> None:
    assert missing_sites(am.HuggingFace(make("gpt2"))) == []
    assert missing_sites(am.HookedModel(Transformer(), {"0.residual": "blocks.0"})) == []
    attention, way = missing_sites(am.HuggingFace(make("gpt_neo")))
    assert "No query, key, value, pattern, output and heads in layers 0-1" in attention
    assert "AttentionInterface" in attention and "GPTNeoForCausalLM" in attention
    assert "am.HookedModel" in way


def test_batches_are_within_the_context() -> None:
    config = am.DecoderConfig(vocabulary=9, context=3, heads=2, width=8)
    assert am.list_sites(am.Decoder(config).eval())["fires"].max() == 1
