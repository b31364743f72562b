"""The decoder against a plain one, written here in NumPy, a position and a head at a time."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.models.base import Batch, LayerKind
from anamorph.models.decoder import Decoder, DecoderConfig, Positions
from anamorph.models.weights import write_weights
from anamorph.simplifications import PCA, SVD, KMeans, OneHot, Simplification
from running import edits_by, run

POSITIONS: tuple[Positions, ...] = ("learned", "sinusoidal", "rotary")
VOCABULARY, CONTEXT, LAYERS, HEADS, WIDTH = 13, 24, 2, 2, 8
Array = NDArray[np.float64]


def make(positions: Positions = "learned", layers: int = LAYERS, heads: int = HEADS) -> Decoder:
    """A decoder whose every parameter matters: random norms and biases, sharp attention."""
    config = DecoderConfig(VOCABULARY, CONTEXT, layers, heads, WIDTH, 12, positions)
    generator = torch.Generator().manual_seed(4)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(4)
        model = Decoder(config)
        for name, parameter in model.named_parameters():
            scale = 1.2 if name.endswith(("query.weight", "key.weight")) else 0.6
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model.double().eval()  # so that other numbers are other arithmetic, not rounding


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


# The plain decoder


def plain_norm(x: Array, weight: Array, bias: Array) -> Array:
    return (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + 1e-5) * weight + bias


def plain_gelu(x: Array) -> Array:
    return np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])


def plain_rotate(x: Array, position: int) -> Array:
    """Neighbouring pairs as complex numbers, turned by position · 10000^(-2j/dim)."""
    turned = [
        complex(x[j], x[j + 1]) * np.exp(1j * position * 10_000.0 ** (-j / len(x)))
        for j in range(0, len(x), 2)
    ]
    return np.array([part for z in turned for part in (z.real, z.imag)])


def plain_logits(model: Decoder, sequence: list[int]) -> tuple[Array, Array]:
    """[position, vocabulary] logits and [layer, head, query, key] patterns of one sequence."""
    w = {name: x.detach().double().numpy() for name, x in model.state_dict().items()}
    c = model.config
    dim = c.width // c.heads
    residual = []
    for t, token in enumerate(sequence):
        x = w["embedding.weight"][token].copy()
        if c.positions == "learned":
            x += w["position.weight"][t]
        elif c.positions == "sinusoidal":
            for j in range(0, c.width, 2):
                x[j] += math.sin(t / 10_000 ** (j / c.width))
                x[j + 1] += math.cos(t / 10_000 ** (j / c.width))
        residual.append(x)
    patterns = np.zeros((c.layers, c.heads, len(sequence), len(sequence)))
    for layer in range(c.layers):

        def of(name: str, layer: int = layer) -> Array:
            return w[f"blocks.{layer}.{name}"]

        normed = [
            plain_norm(x, of("norm_attention.weight"), of("norm_attention.bias")) for x in residual
        ]
        mixed = [np.zeros(c.width) for _ in sequence]
        for head in range(c.heads):
            part = slice(head * dim, (head + 1) * dim)
            query, key, value = (
                [of(f"{kind}.weight")[part] @ x for x in normed]
                for kind in ("query", "key", "value")
            )
            if c.positions == "rotary":
                query, key = (
                    [plain_rotate(x, t) for t, x in enumerate(each)] for each in (query, key)
                )
            for t in range(len(sequence)):
                scores = np.array([query[t] @ key[s] / math.sqrt(dim) for s in range(t + 1)])
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                patterns[layer, head, t, : t + 1] = weights
                mixed[t][part] = sum(p * value[s] for s, p in enumerate(weights))
        for t in range(len(sequence)):
            residual[t] = residual[t] + of("output.weight") @ mixed[t]
            x = plain_norm(residual[t], of("norm_mlp.weight"), of("norm_mlp.bias"))
            hidden = plain_gelu(of("up.weight") @ x + of("up.bias"))
            residual[t] = residual[t] + of("down.weight") @ hidden + of("down.bias")
    last = [plain_norm(x, w["norm.weight"], w["norm.bias"]) for x in residual]
    return np.array([w["unembedding.weight"] @ x for x in last]), patterns


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(("layers", "heads"), [(2, 2), (1, 1), (3, 4)])
def test_logits_and_patterns_are_the_plain_ones(
    positions: Positions, layers: int, heads: int
) -> None:
    model = make(positions, layers, heads)
    atol = 1e-9 if positions == "learned" else 1e-4  # angles are tabulated in float32
    given = tokens(2, 9)
    record: dict[LayerKind, Tensor | None] = {
        LayerKind(layer, "pattern"): None for layer in range(layers)
    }
    explicit = run(model, Batch.whole(given), record=record)
    with torch.inference_mode():
        fused = model(given)
    for row in range(2):
        logits, patterns = plain_logits(model, given[row].tolist())
        assert np.abs(np.diff(logits, axis=0)).max() > 0.5, "a test without contrast"
        np.testing.assert_allclose(fused[row].numpy(), logits, atol=atol)
        np.testing.assert_allclose(explicit[0, row].numpy(), logits, atol=atol)
        for layer in range(layers):
            recorded = record[LayerKind(layer, "pattern")]
            assert recorded is not None and recorded.shape == (1, 2, heads, 9, 9)
            np.testing.assert_allclose(recorded[0, row].numpy(), patterns[layer], atol=atol)


# Law 3: padding


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_padded_batch_gives_the_numbers_of_single_sequences(positions: Positions) -> None:
    model = make(positions)
    lengths = (7, 1, 12, 4)
    sequences = [tokens(length, seed=length) for length in lengths]
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    for padding in (0, VOCABULARY - 1):
        padded = torch.full((4, 12), padding)
        padded[mask] = torch.cat(sequences)
        together = run(model, Batch(padded, mask))[0]
        for row, sequence in enumerate(sequences):
            alone = run(model, Batch.whole(sequence[None]))[0, 0]
            torch.testing.assert_close(together[row, : lengths[row]], alone, atol=1e-9, rtol=1e-9)


# Law 5: causality, and `at`

SIMPLIFICATIONS: dict[str, tuple[tuple[str, ...], Callable[[], Simplification]]] = {
    "one-hot patterns": (("pattern",), OneHot),
    "svd of queries and keys": (("query", "key"), lambda: SVD(rank=2)),
    "k-means of queries and keys": (("query", "key"), lambda: KMeans(clusters=5)),
    "chain on keys": (("key",), lambda: SVD(rank=3) + KMeans(clusters=4)),
    "pca of values and outputs": (("value", "output"), lambda: PCA(rank=1)),
    "svd of residual and mlp": (("residual", "mlp"), lambda: SVD(rank=5)),
    "nothing": ((), OneHot),
}


def edits_of(model: Decoder, name: str) -> dict[LayerKind, Any]:
    kinds, simplification = SIMPLIFICATIONS[name]
    record: dict[LayerKind, Tensor | None] = {
        LayerKind(i, kind): None for i in range(LAYERS) for kind in kinds
    }
    run(model, Batch.whole(tokens(30, 10, seed=8)), record=record)
    edits: dict[LayerKind, Any] = {
        key: simplification().fit(x.reshape(-1, x.shape[-1]) if key.kind != "pattern" else x)
        for key, x in record.items()
        if x is not None
    }
    assert len(edits) == len(kinds) * LAYERS
    return edits


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", SIMPLIFICATIONS)
def test_no_position_sees_its_future(name: str, positions: Positions) -> None:
    model = make(positions)
    edits = edits_of(model, name)
    given = tokens(6, 11)
    before = run(model, Batch.whole(given), edits)
    if edits:
        assert (before - run(model, Batch.whole(given))).abs().max() > 1e-2, (
            "the edit must do something"
        )
    for cut in (1, 4, 10):
        other = given.clone()
        other[:, cut:] = (other[:, cut:] + 1) % VOCABULARY
        after = run(model, Batch.whole(other), edits)
        torch.testing.assert_close(after[:, :, :cut], before[:, :, :cut], atol=1e-9, rtol=1e-9)
        assert ((after - before)[:, :, cut:].abs().amax(-1) > 1e-4).any(), "the future must matter"


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", SIMPLIFICATIONS)
def test_asking_for_positions_gives_their_rows(name: str, positions: Positions) -> None:
    model = make(positions)
    edits = edits_of(model, name)
    given = tokens(3, 11)
    at = torch.tensor([[10, 0, 3, 3], [5, 6, 7, 0], [0, 0, 0, 0]])  # any order, repeated
    kinds = ("query", "key", "value", "pattern", "output", "mlp", "residual")
    full: dict[LayerKind, Tensor | None] = {
        LayerKind(i, kind): None for i in range(LAYERS) for kind in kinds
    }
    some: dict[LayerKind, Tensor | None] = dict.fromkeys(full)
    everywhere = run(model, Batch.whole(given), edits, full)
    rows = run(model, Batch.whole(given), edits, some, at=at)
    picked = torch.stack([everywhere[0, b, at[b]] for b in range(3)])
    torch.testing.assert_close(rows[0], picked, atol=1e-9, rtol=1e-9)
    # Without a recording attention is fused, which is another way through the code.
    fused = run(model, Batch.whole(given), edits, at=at)
    torch.testing.assert_close(fused[0], picked, atol=1e-9, rtol=1e-9)
    with torch.inference_mode():
        before = model.run(Batch.whole(given), edits_by(edits), stop=LAYERS - 1).state
        after = model.run(before, edits_by(edits), at=at, first=LAYERS - 1).state
        torch.testing.assert_close(model.logits(after), fused, atol=1e-9, rtol=1e-9)
    last = LAYERS - 1
    for key, expected in full.items():
        found = some[key]
        assert expected is not None and found is not None
        if key.kind == "pattern" or (key.layer == last and key.kind not in ("key", "value")):
            # [1, batch, (head,) position, ...] to the asked rows of each sequence
            expected = torch.stack([expected[0, b].index_select(-2, at[b]) for b in range(3)])[None]
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def test_logits_at_positions_of_a_whole_run() -> None:
    model = make()
    batch = Batch.whole(tokens(2, 6))
    with torch.inference_mode():
        state = model.run(batch).state
        at = torch.tensor([[5, 1], [0, 2]])
        rows, everywhere = model.logits(state, at), model.logits(state)
    for b in range(2):
        torch.testing.assert_close(rows[0, b], everywhere[0, b, at[b]])


# dict[LayerKind, Any]


def scaled(factors: tuple[float, ...]) -> Callable[[Tensor], Tensor]:
    """An edit that makes a copy for each factor."""
    return lambda x: torch.cat([f * x for f in factors])


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("kind", ["query", "key", "value", "pattern", "output", "mlp", "residual"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("asked", [False, True])
def test_copies_in_one_run_are_separate_runs(
    layer: int, kind: str, positions: Positions, asked: bool
) -> None:
    model, batch = make(positions), Batch.whole(tokens(2, 7))
    at = torch.tensor([[6, 2], [3, 0]]) if asked else None
    factors = (1.0, 0.5, -2.0)
    together = run(model, batch, {LayerKind(layer, kind): scaled(factors)}, at=at)
    assert together.shape[0] == 3
    for copy, factor in enumerate(factors):
        alone = run(model, batch, {LayerKind(layer, kind): scaled((factor,))}, at=at)
        torch.testing.assert_close(together[copy], alone[0], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(together[0], run(model, batch, at=at)[0], atol=1e-9, rtol=1e-9)
    if kind != "residual" or layer == 0:  # the last norm takes the scale of the residual away
        assert (together[1] - together[0]).abs().max() > 1e-3
    assert (together[2] - together[0]).abs().max() > 1e-3


def test_copies_at_several_sites_go_together() -> None:
    model, batch = make(), Batch.whole(tokens(2, 7))
    edits = {
        LayerKind(0, "key"): scaled((1, 2)),
        LayerKind(0, "query"): scaled((3, 1)),
        LayerKind(1, "mlp"): scaled((1,)),
    }
    together = run(model, batch, edits)
    first = run(model, batch, {LayerKind(0, "query"): scaled((3,))})
    second = run(model, batch, {LayerKind(0, "key"): scaled((2,))})
    torch.testing.assert_close(together, torch.cat([first, second]), atol=1e-9, rtol=1e-9)


def test_an_edit_fires_once_a_run_and_only_in_its_layer() -> None:
    model, batch = make(), Batch.whole(tokens(2, 7))
    fired: list[tuple[str, tuple[int, ...]]] = []

    def watch(kind: str) -> Callable[[Tensor], Tensor]:
        def edit(x: Tensor) -> Tensor:
            fired.append((kind, tuple(x.shape)))
            return x

        return edit

    kinds = ("query", "key", "value", "pattern", "output", "mlp", "residual")
    edits = {LayerKind(1, kind): watch(kind) for kind in kinds}
    for at, rows in ((None, 7), (torch.tensor([[3], [4]]), 1)):
        fired.clear()
        run(model, batch, edits, at=at)
        assert fired == [
            ("key", (1, 2, 2, 7, 4)),
            ("value", (1, 2, 2, 7, 4)),
            ("query", (1, 2, 2, rows, 4)),
            ("pattern", (1, 2, 2, rows, 7)),
            ("output", (1, 2, 2, rows, 4)),
            ("mlp", (1, 2, rows, 8)),
            ("residual", (1, 2, rows, 8)),
        ]


def test_what_is_recorded_is_what_came_out_of_the_edit() -> None:
    model, batch = make(), Batch.whole(tokens(2, 7))
    record: dict[LayerKind, Tensor | None] = {
        LayerKind(0, "value"): None,
        LayerKind(1, "value"): None,
    }
    run(model, batch, {LayerKind(0, "value"): lambda x: torch.zeros_like(x)}, record)
    first, second = record[LayerKind(0, "value")], record[LayerKind(1, "value")]
    assert first is not None and second is not None
    assert not first.any() and second.any()


def test_an_untouched_edit_changes_no_bit() -> None:
    model, batch = make(), Batch.whole(tokens(2, 7))
    kinds = ("query", "key", "value", "output", "mlp", "residual")
    edits: dict[LayerKind, Any] = {
        LayerKind(i, kind): lambda x: x for i in range(LAYERS) for kind in kinds
    }
    assert torch.equal(run(model, batch, edits), run(model, batch))


# What it says of itself, and keeping it


def test_sites_and_dimensions() -> None:
    model = make()
    names = {str(site) for site in model.sites}
    heads = {
        f"{i}.{h}.{k}"
        for i in "01"
        for h in "01"
        for k in ("query", "key", "value", "pattern", "output")
    }
    whole = ("residual", "mlp", "heads", "attention", "middle", "mlp_input")
    norms = ("norm_1", "norm_2")
    assert names == heads | {f"{i}.{k}" for i in "01" for k in whole + norms} | {"1.norm_final"}
    assert len(model.sites) == len(names)
    assert [model.dim(k) for k in ("query", "output", *whole)] == [4, 4, 8, 8, 8, 8, 8, 8]
    assert model.dim("norm_2") == 1 and model.dim("pattern") is None and model.layers == 2


@pytest.mark.parametrize("positions", POSITIONS)
def test_saving_and_loading_keeps_every_bit(positions: Positions, tmp_path: Path) -> None:
    model, given = make(positions).float(), tokens(2, CONTEXT)
    model.save(tmp_path / "new" / "model.safetensors")
    loaded = Decoder.load(tmp_path / "new" / "model.safetensors").eval()
    assert loaded.config == model.config
    assert torch.equal(run(loaded, Batch.whole(given)), run(model, Batch.whole(given)))
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["model.safetensors"]


def test_files_that_are_no_decoder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(AnamorphError, match="There is no file"):
        Decoder.load(tmp_path / "missing.safetensors")
    with pytest.raises(AnamorphError, match="as safetensors"):
        Decoder.load(tmp_path)
    path = tmp_path / "model.safetensors"
    make().save(path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(AnamorphError, match="damaged"):
        Decoder.load(path)
    path.write_bytes(b"\x80\x04 no safetensors at all")
    with pytest.raises(AnamorphError, match="damaged"):
        Decoder.load(path)
    write_weights(path, {"x": torch.zeros(1)}, {"other": 1})
    with pytest.raises(AnamorphError, match=r"holds no anamorph decoder.*other"):
        Decoder.load(path)
    config = {"vocabulary": 5, "context": 4, "width": 8}
    for wrong in (config, config | {"depth": 3}, config | {"heads": 3}, {"width": 8}, [1], None):
        write_weights(path, make().state_dict(), {"decoder": wrong})
        with pytest.raises(AnamorphError):
            Decoder.load(path)


def test_a_sequence_beyond_the_context_is_an_error() -> None:
    for positions in POSITIONS:
        model = make(positions)
        assert run(model, Batch.whole(tokens(1, CONTEXT))).shape[2] == CONTEXT
        with pytest.raises(AnamorphError, match="25 tokens does not fit the model's context of 24"):
            model.start(Batch.whole(tokens(1, CONTEXT + 1)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 0}, "width must be a whole number above 0; got 0"),
        ({"layers": -1}, "layers must be a whole number above 0; got -1"),
        ({"mlp": 2.5}, r"mlp must be a whole number above 0; got 2\.5"),
        ({"heads": 3}, "width must be a multiple of heads; got width=32, heads=3"),
        (
            {"positions": "absolute"},
            "positions must be one of learned, sinusoidal, rotary; got 'absol",
        ),
        (
            {"width": 6, "heads": 2, "positions": "rotary"},
            "even number of dimensions a head; got 3",
        ),
        ({"width": 7, "positions": "sinusoidal"}, "even number"),
    ],
)
def test_shapes_that_make_no_sense_are_errors(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(AnamorphError, match=message):
        DecoderConfig(**{"vocabulary": 5, "context": 9} | wrong)  # type: ignore[arg-type]


def test_a_decoder_is_float32_on_the_cpu_whatever_the_process_makes_by_default() -> None:
    config = DecoderConfig(vocabulary=7, context=6, positions="rotary")
    torch.manual_seed(0)
    usual = Decoder(config).state_dict()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        other = Decoder(config)
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_default_device() == torch.device("meta")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert all(torch.equal(other.state_dict()[name], value) for name, value in usual.items())
    assert other.turn.dtype == torch.float32 and other.turn.device == torch.device("cpu")
