"""Up to the first edit, a block runs once for all proxies of a stack and all stacks of a batch.

The other way is a state whose copies have parted before: there every copy runs the whole block.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anamorph.auditing.stacks import StackedEdit
from anamorph.models.base import Batch, EditBy, LayerKind, State
from anamorph.models.changing import Changed
from anamorph.models.huggingface import attention
from anamorph.models.huggingface.model import HuggingFace
from anamorph.models.sites import Site
from anamorph.simplifications import SVD, Simplification
from huggingface_models import MODELS, MORE, VOCABULARY, make, uneven

transformers = pytest.importorskip("transformers")

COPIES = 5
TOKENS = torch.randint(3, VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(1))
WITHIN = ("mlp", "mlp_input", "middle", "attention")


def batch_of(model: HuggingFace) -> Batch:
    mask = torch.ones_like(TOKENS).bool()
    mask[1, 8:] = mask[2, 5:] = False
    return Batch(TOKENS, mask)


def stack(key: LayerKind, width: int, copies: int = COPIES) -> dict[LayerKind, StackedEdit]:
    """Proxies of several ranks; the second leaves the model as it is."""
    x = torch.randn(200, width, generator=torch.Generator().manual_seed(2))
    fits: list[Simplification] = [SVD(rank=1 + 5 * copy).fit(x) for copy in range(copies)]
    placed = [{None: fit} if copy != 1 else {} for copy, fit in enumerate(fits)]
    return {key: StackedEdit(key, placed)}


def parted(state: State, copies: int = COPIES) -> State:
    """The same, as if an edit had made copies of it."""
    return replace(state, residual=state.residual.repeat(copies, 1, 1, 1))


def states_of(model: HuggingFace, batch: Batch) -> list[State]:
    states = [model.start(batch)]
    for layer in range(model.layers):
        states.append(model.layer(layer, states[-1]).state)
    return states


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5 * float(b.abs().max()), rtol=1e-5)


@pytest.mark.parametrize("name", [*MODELS, *MORE])
@torch.inference_mode()
def test_a_stack_gives_what_every_copy_by_itself_gives(name: str) -> None:
    model = HuggingFace(uneven(make(name)))
    batch = batch_of(model)
    states = states_of(model, batch)
    patterns = [site for site in model.sites if site.kind == "pattern"]
    kinds = {site.kind for site in model.sites} & {"residual", *WITHIN}
    assert {"residual", "mlp"} <= kinds
    for layer in range(model.layers):
        for kind in sorted(kinds):
            key = LayerKind(layer, kind)
            own, other = (
                model.run(state, stack(key, 32), patterns, None, layer, layer + 1)
                for state in (states[layer], parted(states[layer]))
            )
            same(own.state.residual, other.state.residual)
            unchanged, after = own.state.residual[1], states[layer + 1].residual[0]
            if kind in ("residual", "mlp"):  # behind them nothing is multiplied
                assert torch.equal(unchanged, after), key
            same(unchanged, after)
            assert own.recorded.keys() == other.recorded.keys()
            for site, pattern in own.recorded.items():
                same(pattern.expand_as(other.recorded[site]), other.recorded[site])


@torch.inference_mode()
def test_what_an_edit_reads_and_what_is_recorded_is_of_every_copy() -> None:
    model = HuggingFace(make("llama"))
    states = states_of(model, Batch.whole(TOKENS))
    key, read = LayerKind(1, "mlp"), LayerKind(1, "mlp_input")

    class Reading(EditBy):
        reads = (read, LayerKind(0, "residual"))

        def __call__(self, x: Tensor, context: Any) -> Tensor:
            shown = context.read[read] + context.read[self.reads[1]]
            return (x + shown) * torch.linspace(0, 1, 3).view(3, 1, 1, 1)

    record = [read, key, LayerKind(1, "middle"), LayerKind(1, "query"), LayerKind(1, "pattern")]
    found = []
    for copies in (1, 3):
        edit = Reading(lambda x: x, copies=3)
        first = model.layer(0, parted(states[0], copies), {key: edit})
        found.append(model.layer(1, first.state, {key: edit}, record))
    same(found[0].state.residual, found[1].state.residual)
    for site in record:
        wanted = found[1].recorded[site]
        same(found[0].recorded[site].expand_as(wanted), wanted)


@contextmanager
def rows_through(module: nn.Module) -> Iterator[list[int]]:
    """How many sequences go through a module, each time."""
    rows: list[int] = []
    hook = module.register_forward_hook(lambda module, given, out: rows.append(len(given[0])))
    try:
        yield rows
    finally:
        hook.remove()


@pytest.mark.parametrize("kind", ["residual", "mlp"])
@torch.inference_mode()
def test_a_block_runs_once_for_all_stacks_of_a_batch(kind: str) -> None:
    module: Any = make("llama")
    model = HuggingFace(module)
    state, key = states_of(model, Batch.whole(TOKENS))[1], LayerKind(1, kind)
    block = module.model.layers[1]
    with rows_through(block.self_attn.q_proj) as attends, rows_through(block.mlp.up_proj) as runs:
        for _ in range(3):
            model.run(state, stack(key, 32), first=1)
        model.run(parted(state), stack(key, 32), first=1)
    assert attends == runs == [3, 3 * COPIES]


@torch.inference_mode()
def test_behind_the_first_edit_every_copy_runs() -> None:
    module: Any = make("llama")
    model = HuggingFace(module)
    state = states_of(model, Batch.whole(TOKENS))[1]
    block = module.model.layers[1]
    with rows_through(block.self_attn.q_proj) as attends, rows_through(block.mlp.up_proj) as runs:
        model.run(state, stack(LayerKind(1, "mlp_input"), 32), first=1)
    assert (attends, runs) == ([3], [3, 3 * COPIES])


class Gated(nn.Module):
    """An MLP that uses what the norm before it has left behind."""

    def __init__(self, mlp: nn.Module, norm: "Leaving") -> None:
        super().__init__()
        self.mlp, self.norm = mlp, [norm]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(x) * self.norm[0].ones
        return out


class Leaving(nn.Module):
    """A norm that leaves something behind for others."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        self.ones = torch.ones_like(x[..., :1])
        out: Tensor = self.norm(x)
        return out


@torch.inference_mode()
def test_a_block_whose_parts_leave_something_behind_runs_as_a_whole() -> None:
    """The norm that does not run again would leave nothing for the copies."""
    module: Any = make("llama")
    layer = module.model.layers[1]
    layer.input_layernorm = Leaving(layer.input_layernorm)
    layer.mlp = Gated(layer.mlp, layer.input_layernorm)
    model = HuggingFace(module)
    assert [bool(block.parts) for block in model.blocks] == [True, False, True]
    states = states_of(model, Batch.whole(TOKENS))
    for kind in ("attention", "mlp", "residual"):
        key = LayerKind(1, kind)
        own, other = (
            model.run(state, stack(key, 32), first=1, stop=2).state.residual
            for state in (states[1], parted(states[1]))
        )
        same(own, other)


@torch.inference_mode()
def test_a_hook_set_later_is_honoured() -> None:
    module: Any = make("llama")
    model = HuggingFace(module)
    states = states_of(model, Batch.whole(TOKENS))
    with model.session():
        hook = module.model.layers[1].mlp.register_forward_hook(lambda module, given, out: out * 3)
        own, other = (
            model.run(state, stack(LayerKind(1, "mlp"), 32), first=1, stop=2).state.residual
            for state in (states[1], parted(states[1]))
        )
        hook.remove()
    same(own, other)


@pytest.mark.parametrize("name", ["gemma3", "mistral", "bert", "gpt_oss"])
@torch.inference_mode()
def test_masks_are_looked_at_once_a_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU would have to be waited for each time."""
    model = HuggingFace(make(name))
    state, looked = model.start(batch_of(model)), Counter[str]()
    by_copy = attention.alike_by_copy

    def counted(x: Tensor, copies: int) -> Tensor:
        looked["at"] += 1
        return by_copy(x, copies)

    monkeypatch.setattr(attention, "alike_by_copy", counted)
    expected = model.run(state, stack(LayerKind(0, "residual"), 32)).state.residual
    assert not looked  # in no layer, of no stack
    monkeypatch.setattr(attention, "place_of", lambda x: (0, 0))  # as if each block made its own
    again = model.run(state, stack(LayerKind(0, "residual"), 32)).state.residual
    assert looked["at"] >= 1
    assert torch.equal(again, expected)


@torch.inference_mode()
def test_masks_that_differ_by_copy_stay_apart() -> None:
    mask = torch.tensor([0.0, 0.0, -1.0, -1.0]).view(4, 1, 1, 1)  # of two copies of two sequences
    assert not attention.alike_by_copy(mask, 2)
    assert attention.alike_by_copy(mask[[0, 2, 0, 2]], 2)


@torch.inference_mode()
def test_single_heads_of_a_site_are_the_same_by_slices_and_one_by_one() -> None:
    x = torch.randn(2, 3, 6, 4, 5)
    for heads in ([], [2], [1, 2, 3], [4, 1], [0, 0, 5], range(6)):
        assert torch.equal(attention.heads_at(x, heads), x[:, :, list(heads)])


@torch.inference_mode()
def test_other_weights_are_not_taken_for_the_models_own() -> None:
    model = HuggingFace(make("llama"))
    state, key = states_of(model, Batch.whole(TOKENS))[1], LayerKind(1, "residual")
    (up, *_) = (m for m in model.matrices(Site(1, None, "mlp")) if "up" in m.name)
    changed = Changed({up: up.module.weight.detach() * 0.5})

    def ran() -> Tensor:
        return model.run(state, {key: EditBy(lambda x: 2 * x)}, first=1, stop=2).state.residual

    with model.session(), changed.session():
        own = ran()
        with changed.running():
            other = ran()
        assert not torch.allclose(own, other, atol=1e-3)
        assert torch.equal(ran(), own)
