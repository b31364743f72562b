"""What an edit is told and shown, on every kind of model, against plain hooks on the modules."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anamorph as am
from anamorph.models.base import Batch, Context, Edit, EditBy, LayerKind, Model
from anamorph.models.tap import rows_at
from huggingface_models import make
from plain_modules import Transformer, large
from running import run

READ, WRITTEN = LayerKind(0, "mlp"), LayerKind(1, "mlp")
LENGTHS = (9, 6)
WEIGHTS = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) / 8


def decoder() -> tuple[Model, nn.Module, Sequence[nn.Module]]:
    torch.manual_seed(0)
    model = am.Decoder(am.DecoderConfig(vocabulary=40, context=12, heads=2, width=16)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model, model, [block.down for block in model.blocks]


def hugging_face() -> tuple[Model, nn.Module, Sequence[nn.Module]]:
    module: Any = make("llama")
    return am.HuggingFace(module), module, [layer.mlp for layer in module.model.layers]


def hooked() -> tuple[Model, nn.Module, Sequence[nn.Module]]:
    module: Any = large(Transformer(layers=2)).eval()
    sites = {"*.mlp": "blocks.*.mlp", "*.residual": "blocks.*"}
    model = am.HookedModel(module, sites, threads=True)
    return model, module, [block.mlp for block in module.blocks]


MAKERS = {"decoder": decoder, "hugging face": hugging_face, "hooked": hooked}


class Reads(Edit):
    """Adds an affine map of what layer 0's MLP gave to what layer 1's gives, and waits before."""

    reads = (READ,)

    def __init__(self, barrier: Barrier | None = None) -> None:
        self.barrier, self.seen = barrier, Context(torch.empty(0), torch.empty(0))

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        if self.barrier is not None:
            self.barrier.wait(timeout=60)
        self.seen = context
        return x + mapped(context.read[READ])


def mapped(x: Tensor) -> Tensor:
    width = x.shape[-1]
    return torch.tanh(x @ WEIGHTS[:width, :width] + 0.3)


def batch(model: Model, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, min(model.vocabulary, 40), (2, 9), generator=generator)
    return Batch(tokens, torch.arange(9) < torch.tensor(LENGTHS)[:, None])


@contextmanager
def hooks(mlps: Sequence[nn.Module], first: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """By hand: what the first MLP gives is changed, and mapped and added to the second's."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        kept.append(first(out))
        return kept[-1]

    def add(module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        return out + mapped(kept.pop())

    with ExitStack() as undo:
        undo.callback(mlps[0].register_forward_hook(keep).remove)
        undo.callback(mlps[1].register_forward_hook(add).remove)
        yield


@torch.inference_mode()
def by_hand(
    module: nn.Module,
    mlps: Sequence[nn.Module],
    tokens: Tensor,
    first: Callable[[Tensor], Tensor] = torch.clone,
) -> list[Tensor]:
    """[position, vocabulary] of each sequence without its padding, by the module's own forward."""
    with hooks(mlps, first):
        rows = [module(row[None, :n]) for row, n in zip(tokens, LENGTHS, strict=True)]
    return [getattr(out, "logits", out)[0] for out in rows]


def close(found: Tensor, expected: Sequence[Tensor]) -> None:
    for row, right in zip(found, expected, strict=True):
        torch.testing.assert_close(row[: len(right)], right, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", MAKERS)
def test_an_edit_reads_an_earlier_layer(name: str) -> None:
    model, module, mlps = MAKERS[name]()
    given = batch(model, 1)
    expected = by_hand(module, mlps, given.tokens)
    close(run(model, given, {WRITTEN: Reads()})[0], expected)
    assert (run(model, given)[0, 0, :9] - expected[0]).abs().max() > 0.05
    at = torch.tensor([[8, 0, 3], [5, 5, 1]])
    rows = run(model, given, {WRITTEN: Reads()}, at=at)[0]
    some = [row[where] for row, where in zip(expected, at, strict=True)]
    close(rows, some)


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_read_is_what_an_edit_left(name: str) -> None:
    model, module, mlps = MAKERS[name]()
    given = batch(model, 2)
    halved = {READ: EditBy(lambda x: x / 2), WRITTEN: Reads()}
    close(run(model, given, halved)[0], by_hand(module, mlps, given.tokens, lambda x: x / 2))


@pytest.mark.parametrize("name", MAKERS)
def test_copies_read_their_own(name: str) -> None:
    """Two proxies in one run, whose first layers differ."""
    model, module, mlps = MAKERS[name]()
    given = batch(model, 3)
    first = EditBy(lambda x: torch.cat([x[:1] / 2, x[-1:].tanh()]), copies=2)
    both = run(model, given, {READ: first, WRITTEN: Reads()})
    assert len(both) == 2
    close(both[0], by_hand(module, mlps, given.tokens, lambda x: x / 2))
    close(both[1], by_hand(module, mlps, given.tokens, torch.tanh))


@pytest.mark.parametrize("name", MAKERS)
def test_threads_read_their_own(name: str) -> None:
    """Both have read layer 0 before either writes."""
    model, module, mlps = MAKERS[name]()
    batches = [batch(model, seed) for seed in (4, 5)]
    barrier = Barrier(2)

    def one(given: Batch) -> Tensor:
        return run(model, given, {WRITTEN: Reads(barrier)})[0]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(one, batches))
    for given, logits in zip(batches, found, strict=True):
        close(logits, by_hand(module, mlps, given.tokens))


@pytest.mark.parametrize("name", MAKERS)
def test_an_edit_is_told_tokens_and_mask(name: str) -> None:
    model = MAKERS[name]()[0]
    given, edit = batch(model, 6), Reads()
    run(model, given, {WRITTEN: edit})
    assert torch.equal(edit.seen.tokens, given.tokens) and torch.equal(edit.seen.mask, given.mask)
    assert edit.seen.at is None


def test_an_edit_of_the_last_layer_is_told_which_positions_it_gets() -> None:
    model, given, edit = decoder()[0], batch(decoder()[0], 7), Reads()
    at = torch.tensor([[8, 0, 3], [5, 5, 1]])
    recorded: dict[Any, Any] = {READ: None}
    run(model, given, {WRITTEN: edit}, recorded, at=at)
    assert edit.seen.at is at
    torch.testing.assert_close(edit.seen.read[READ], rows_at(recorded[READ], at))


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_not_computed_before_cannot_be_read(name: str) -> None:
    class Later(Reads):
        reads = (LayerKind(1, "residual"),)

    model = MAKERS[name]()[0]
    with pytest.raises(am.AnamorphError, match="mlp in layer 1 reads residual of layer 1, which"):
        run(model, batch(model, 8), {WRITTEN: Later()})


class ReadsHeads(Edit):
    """Adds the first head's queries to every head's output of the same layer."""

    reads = (LayerKind(1, "query"),)

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        return x + context.read[LayerKind(1, "query")][:, :, :1]


@pytest.mark.parametrize("name", ["decoder", "hugging face"])
def test_heads_of_the_same_layer_can_be_read(name: str) -> None:
    model = MAKERS[name]()[0]
    given = batch(model, 9)
    recorded: dict[Any, Any] = {LayerKind(1, "query"): None, LayerKind(1, "output"): None}
    run(model, given, None, recorded)
    query, output = recorded.values()
    expected = run(model, given, {LayerKind(1, "output"): lambda x: output + query[:, :, :1]})
    found = run(model, given, {LayerKind(1, "output"): ReadsHeads()})
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("heads", [None, 1, 3])
@pytest.mark.parametrize("beside", [False, True])
def test_rows_at_positions(heads: int | None, beside: bool) -> None:
    """Of every layout in memory: heads side by side, or one after the other."""
    shape = (2, 3, 5, 4) if heads is None else (2, 3, heads, 5, 4)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if beside and heads is not None:
        x = x.transpose(2, 3).contiguous().transpose(2, 3)
    at = torch.tensor([[4, 0, 0], [1, 2, 3], [0, 4, 1]])
    for copy in range(2):
        for row in range(3):
            expected = x[copy, row].index_select(-2, at[row])
            assert torch.equal(rows_at(x, at)[copy, row], expected)
    assert rows_at(x, None) is x
