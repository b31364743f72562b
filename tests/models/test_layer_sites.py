"""Heads side by side, attention, middle and MLP input, against hooks on the plain module."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import anamorph as am
from anamorph.models.base import Batch, Context, Edit, EditBy, Edits, LayerKind, Model, Recorded
from anamorph.models.listing import missing_sites
from anamorph.models.sites import NORM_KINDS, Site
from huggingface_models import OPT, SIZES, VOCABULARY, make, wide
from plain import forward

TOKENS = torch.randint(3, VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(1))
LENGTHS = 11, 7, 4
MASK = torch.arange(11) < torch.tensor(LENGTHS)[:, None]
KINDS = "heads", "attention", "middle", "mlp_input"
LAYERS = range(3)
SPOT = 2  # a position that every sequence has

# --- by hand --------------------------------------------------------------------------------------

Side = Literal["in", "out"]


@dataclass(frozen=True)
class Hand:
    """Where somebody who knows the class puts hooks.

    Attributes:
        blocks: path of the list of blocks.
        heads: what takes the outputs of all heads.
        attention: what gives what attention adds.
        middle: a place where the stream between attention and MLP can be read.
        mlp_input: where what the MLP is given can be read and changed.
        norm_first: whether the MLP is behind a norm, and the sum is not: then adding to the stream
            between is adding to what that norm takes, and to what the block gives.
    """

    blocks: str
    heads: str
    attention: str
    middle: tuple[str, Side] | None
    mlp_input: tuple[str, Side]
    norm_first: bool = True

    def at(self, kind: str) -> tuple[str, Side]:
        """Submodule and side of a kind."""
        if kind in ("middle", "mlp_input"):
            place = getattr(self, kind)
            assert place is not None
            return place  # type: ignore[no-any-return]
        return (self.heads, "in") if kind == "heads" else (self.attention, "out")


LLAMA = ("self_attn.o_proj", "self_attn.o_proj")
NORM = "post_attention_layernorm"
DENSE = "attention.output.dense"
HANDS = {
    "gpt2": Hand("transformer.h", "attn.c_proj", "attn.c_proj", ("ln_2", "in"), ("ln_2", "out")),
    "llama": Hand("model.layers", *LLAMA, (NORM, "in"), (NORM, "out")),
    "gemma3": Hand(
        "model.layers",
        "self_attn.o_proj",
        NORM,
        ("pre_feedforward_layernorm", "in"),
        ("pre_feedforward_layernorm", "out"),
    ),
    "neox": Hand("gpt_neox.layers", "attention.dense", "attention.dense", None, (NORM, "out")),
    "neox_in_turn": Hand(
        "gpt_neox.layers", "attention.dense", "attention.dense", (NORM, "in"), (NORM, "out")
    ),
    "opt": Hand(
        "model.decoder.layers",
        "self_attn.out_proj",
        "self_attn.out_proj",
        ("final_layer_norm", "in"),
        ("final_layer_norm", "out"),
    ),
    "opt_norm_behind": Hand(
        "model.decoder.layers",
        "self_attn.out_proj",
        "self_attn.out_proj",
        ("self_attn_layer_norm", "out"),
        ("fc1", "in"),
        norm_first=False,
    ),
    "bert": Hand(
        "bert.encoder.layer",
        DENSE,
        DENSE,
        ("attention.output.LayerNorm", "out"),
        ("intermediate.dense", "in"),
        norm_first=False,
    ),
    "cohere": Hand("model.layers", *LLAMA, None, ("mlp.gate_proj", "in")),  # one norm for both
    "olmo2": Hand(
        "model.layers",
        "self_attn.o_proj",
        NORM,
        ("mlp.gate_proj", "in"),  # no norm before the MLP
        ("mlp.gate_proj", "in"),
    ),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "neox_in_turn": lambda: hf.GPTNeoXForCausalLM(
        hf.GPTNeoXConfig(**SIZES, use_parallel_residual=False)
    ),
    "opt_norm_behind": lambda: hf.OPTForCausalLM(hf.OPTConfig(**OPT, do_layer_norm_before=False)),
    "cohere": lambda: hf.CohereForCausalLM(hf.CohereConfig(**SIZES)),
    "olmo2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**SIZES)),
}


def module_of(name: str) -> Any:
    if name in OTHERS:
        torch.manual_seed(0)
        return wide(OTHERS[name]())
    return make(name)


def has(name: str, kind: str) -> bool:
    return kind != "middle" or HANDS[name].middle is not None


CASES = [(name, kind) for name in HANDS for kind in KINDS if has(name, kind)]


def changing(change: Callable[[Tensor], Tensor], side: Side) -> Any:
    """A hook that puts something else in the place of what a module takes or gives."""

    def taken(module: nn.Module, inputs: Any) -> Any:
        return (change(inputs[0]), *inputs[1:])

    def given(module: nn.Module, inputs: Any, out: Any) -> Any:
        return change(out) if torch.is_tensor(out) else type(out)([change(out[0]), *out[1:]])

    return taken if side == "in" else given


@contextmanager
def hooked(
    module: Any, name: str, layer: int, kind: str, change: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """The plain module with one change at a site."""
    hand = HANDS[name]
    block = module.get_submodule(f"{hand.blocks}.{layer}")
    path, side = hand.at(kind)
    places = [(block.get_submodule(path), side)]
    if kind == "middle" and hand.norm_first:
        places = [(block.get_submodule(path), "in"), (block, "out")]
    if path == "mlp.gate_proj":  # two matrices take it
        places.insert(0, (block.mlp.up_proj, "in"))
    with ExitStack() as stack:
        for part, at in places:
            register = part.register_forward_pre_hook if at == "in" else part.register_forward_hook
            stack.callback(register(changing(change, at)).remove)
        yield


def own(module: Any, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return module(input_ids=tokens).logits  # type: ignore[no-any-return]


def read_by_hand(module: Any, name: str, layer: int, kind: str, tokens: Tensor) -> Tensor:
    seen: list[Tensor] = []

    def look(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x

    path, side = HANDS[name].at(kind)
    part = module.get_submodule(f"{HANDS[name].blocks}.{layer}.{path}")
    register = part.register_forward_pre_hook if side == "in" else part.register_forward_hook
    handle = register(changing(look, side))
    own(module, tokens)
    handle.remove()
    (one,) = seen
    return one.view(*tokens.shape, -1)


# --- through anamorph -----------------------------------------------------------------------------


def run(
    model: Model,
    edits: Edits | None = None,
    record: Any = (),
    at: Tensor | None = None,
    tokens: Tensor = TOKENS,
    mask: Tensor = MASK,
) -> tuple[Tensor, Recorded]:
    """Logits [copy, batch, query, vocabulary] of right-padded sequences, and what was recorded."""
    with torch.inference_mode():
        batch = Batch(tokens.where(mask, 5), mask)
        state, recorded = model.run(batch, edits or {}, record, at)
        return model.logits(state), recorded


class Adding(Edit):
    """Adds a vector at all positions in the first copy, and at one of them in the second."""

    copies = 2

    def __init__(self, vector: Tensor) -> None:
        self.vector, self.fired = vector, 0

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        self.fired += 1
        there = (torch.arange(context.tokens.shape[1]) == SPOT).expand(context.tokens.shape)
        if context.at is not None:
            there = there.gather(1, context.at)
        return torch.stack([x[0] + self.vector, x[-1] + self.vector * there[..., None]])


def vector_of(width: int) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(5))


def at_one(x: Tensor, vector: Tensor) -> Tensor:
    """The vector added at one position, of [batch, position, width] or [position, width]."""
    changed = x.clone()
    changed[..., SPOT, :] += vector
    return changed


def close(given: Tensor, expected: Tensor, rtol: float = 2e-4) -> None:
    torch.testing.assert_close(given, expected, atol=3e-5, rtol=rtol)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_what_is_read_is_what_a_hook_sees(name: str, kind: str) -> None:
    module = module_of(name)
    model = am.HuggingFace(module)
    keys = [LayerKind(layer, kind) for layer in LAYERS]
    _, recorded = run(model, record=keys)
    for key in keys:
        for row, n in enumerate(LENGTHS):
            expected = read_by_hand(module, name, key.layer, kind, TOKENS[row : row + 1, :n])
            close(recorded[key][0, row, :n], expected[0])


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_adding_a_vector_is_what_the_hook_that_adds_it_does(name: str, kind: str) -> None:
    module = module_of(name)
    model = am.HuggingFace(module)
    for layer in LAYERS:
        key = LayerKind(layer, kind)
        vector = vector_of(run(model, record=[key])[1][key].shape[-1])
        edit = Adding(vector)
        logits, recorded = run(model, {key: edit}, [key])
        assert edit.fired == 1
        usual = run(model, record=[key])[1][key]
        changes = (vector.add, partial(at_one, vector=vector))
        for copy, change in enumerate(changes):
            close(recorded[key][copy], change(usual[0]))
            for row, n in enumerate(LENGTHS):
                alone = TOKENS[row : row + 1, :n]
                with hooked(module, name, layer, kind, change):
                    expected = own(module, alone)[0]
                close(logits[copy, row, :n], expected)
                assert (expected - own(module, alone)[0]).abs().max() > 0.01
        at = torch.tensor([[3, 0], [SPOT, 1], [1, 3]])
        some, _ = run(model, {key: Adding(vector)}, at=at)
        close(some, logits.gather(2, at[None, ..., None].expand(2, -1, -1, VOCABULARY)))


@pytest.mark.parametrize("name", HANDS)
def test_every_law_is_kept(name: str) -> None:
    am.check_model(am.HuggingFace(module_of(name)), TOKENS)


@pytest.mark.parametrize("name", HANDS)
def test_output_is_edited_first_and_then_heads(name: str) -> None:
    """Also where only some heads are edited, and attention is not computed again for the others."""
    module = module_of(name)
    model = am.HuggingFace(module)
    key, heads, query = (LayerKind(1, kind) for kind in ("output", "heads", "query"))
    recorded = run(model, record=[heads, key])[1]
    vector = vector_of(recorded[heads].shape[-1])
    count = recorded[key].shape[2]

    def change(x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (count, -1)).clone()
        parts[..., 1, :] = -parts[..., 1, :]
        return parts.flatten(-2) + vector

    edits = {key: _TurnedHead(), heads: EditBy(lambda x: x + vector)}
    logits, _ = run(model, edits)
    slow, found = run(model, edits, [query, key, heads])
    close(slow, logits)
    close(found[heads], found[key].transpose(2, 3).flatten(3) + vector)
    for row, n in enumerate(LENGTHS):
        with hooked(module, name, 1, "heads", change):
            close(logits[0, row, :n], own(module, TOKENS[row : row + 1, :n])[0])


class _TurnedHead(Edit):
    heads = (1,)

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        changed = x.clone()
        changed[:, :, 1] = -changed[:, :, 1]
        return changed


def test_patterns_are_recorded_beside_an_edit_of_heads_side_by_side() -> None:
    model, batch = am.HuggingFace(module_of("gpt2")), Batch(TOKENS, MASK)
    site, half = Site(1, 2, "pattern"), EditBy(lambda x: x / 2)
    whole = model.run(batch, record=[LayerKind(1, "pattern")]).recorded[LayerKind(1, "pattern")]
    found = model.run(batch, {LayerKind(1, "heads"): half}, [site]).recorded[site]
    assert torch.equal(found, whole[:, :, 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_edit_of_the_middle_is_exact_beside_a_huge_stream(dtype: torch.dtype) -> None:
    """Attention that adds the difference from the stream would leave its rounding behind."""
    module = module_of("llama").to(dtype)
    with torch.no_grad():
        module.model.embed_tokens.weight[:, :3] *= 30_000
    model = am.HuggingFace(module)
    keys = [LayerKind(1, kind) for kind in ("middle", "mlp_input", "mlp", "residual")]
    _, recorded = run(model, {keys[0]: EditBy(lambda x: (x / 7).tanh())}, keys)
    middle, given, mlp, residual = (recorded[key] for key in keys)
    norm = module.model.layers[1].post_attention_layernorm
    assert torch.equal(norm(middle), given) and torch.equal(middle + mlp, residual)
    assert run(model, record=keys)[1][keys[0]].abs().max() > 1_000 and middle.abs().max() <= 1


def test_recording_changes_no_bit_of_the_middle() -> None:
    module, key, seen = module_of("gpt2"), LayerKind(1, "middle"), []
    model = am.HuggingFace(module)
    norm = module.transformer.h[1].ln_2
    handle = norm.register_forward_pre_hook(lambda norm, inputs: seen.append(inputs[0].clone()))
    usual, _ = run(model)
    logits, recorded = run(model, record=[key])
    handle.remove()
    assert torch.equal(logits, usual) and torch.equal(seen[0], seen[1])
    assert torch.equal(recorded[key][0], seen[0])


# --- what there is and what there is not ----------------------------------------------------------


@pytest.mark.parametrize("name", HANDS)
def test_sites_are_listed(name: str) -> None:
    model = am.HuggingFace(module_of(name))
    whole = {site for site in model.sites if site.head is None and site.kind not in NORM_KINDS}
    sites = {(site.layer, site.kind) for site in whole}
    assert {kind for _, kind in sites} - {"residual", "mlp"} == {k for k in KINDS if has(name, k)}
    assert len(sites) == 3 * len({kind for _, kind in sites})
    said = missing_sites(model)
    between = [x for x in said if x.startswith("No middle in layers 0-2") and "same stream" in x]
    assert bool(between) != has(name, "middle") and len(said) == len(between)
    found = am.list_sites(model)
    assert (found["fires"] == 1).all()
    assert set(found.filter(kind="heads")["shape"]) == {"[position, 32]"}


def test_no_stream_between_where_a_block_weighs_it() -> None:
    """A block that adds attention to half of its stream: no sum of the two is the middle."""
    module = module_of("llama")

    class Half(type(module.model.layers[1])):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor, **more: Any) -> Any:
            added, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **more)
            middle = hidden_states / 2 + added
            return middle + self.mlp(self.post_attention_layernorm(middle))

    module.model.layers[1].__class__ = Half
    model = am.HuggingFace(module)
    kinds = {site.kind for site in model.sites if site.layer == 1 and site.head is None}
    assert kinds - set(NORM_KINDS) == {"residual", "heads", "mlp", "mlp_input"}
    assert any("attention and middle in layers 1" in sentence for sentence in missing_sites(model))
    am.check_model(model, TOKENS)


def test_no_middle_where_the_mlp_sees_more_than_it() -> None:
    """The MLP is given the stream before attention, too, so the middle is not all that it sees."""
    module = module_of("llama")

    class Looking(type(module.model.layers[1])):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor, **more: Any) -> Any:
            added, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **more)
            middle = hidden_states + added
            given = self.post_attention_layernorm(middle) + self.input_layernorm(hidden_states)
            return middle + self.mlp(given)

    module.model.layers[1].__class__ = Looking
    sites = am.HuggingFace(module).sites
    assert Site(1, None, "mlp") in sites and Site(1, None, "heads") in sites
    assert not {Site(1, None, "middle"), Site(1, None, "mlp_input")} & set(sites)
    assert Site(0, None, "middle") in sites


# --- the decoder and hooked modules ---------------------------------------------------------------


def decoder() -> am.Decoder:
    torch.manual_seed(1)
    model = am.Decoder(am.DecoderConfig(VOCABULARY, 16, 2, 2, 8, 16)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_holds_and_takes_what_numpy_does(kind: str, layer: int) -> None:
    model, site, key = decoder(), Site(layer, None, kind), LayerKind(layer, kind)
    vector = vector_of(8).double()
    logits, recorded = run(model, {key: Adding(vector)}, [key])
    _, usual = run(model, record=[key])
    at = torch.tensor([[3, 0], [SPOT, 1], [1, 3]])
    some, rows = run(model, {key: Adding(vector)}, [key], at)
    close(some, logits.gather(2, at[None, ..., None].expand(2, -1, -1, VOCABULARY)), 1e-9)
    if layer == 1:
        close(rows[key], recorded[key].gather(2, at[None, ..., None].expand(2, -1, -1, 8)), 1e-9)
    changes = (lambda x: x + vector.numpy(), lambda x: at_one(torch.tensor(x), vector).numpy())
    for row, n in enumerate(LENGTHS):
        alone = TOKENS[row, :n].tolist()
        close(usual[key][0, row, :n], torch.tensor(forward(model, alone, {})[site]), 1e-9)
        for copy, change in enumerate(changes):
            expected = forward(model, alone, {site: change})["logits"]
            close(logits[copy, row, :n], torch.tensor(expected), 1e-9)


def test_a_decoder_edits_output_first_and_then_heads() -> None:
    model, vector = decoder(), vector_of(8).double()
    edits = {
        LayerKind(0, "output"): EditBy(lambda x: x * 2),
        LayerKind(0, "heads"): EditBy(lambda x: x + vector),
    }
    by_hand = {
        **{Site(0, head, "output"): lambda x: x * 2 for head in (0, 1)},
        Site(0, None, "heads"): lambda x: x + vector.numpy(),
    }
    logits, _ = run(model, edits)
    expected = forward(model, TOKENS[0].tolist(), by_hand)["logits"]
    close(logits[0, 0], torch.tensor(expected), 1e-9)


def test_a_hooked_module_has_them_by_name() -> None:
    """The sites of GPT-2 that a submodule gives or takes, equal to those that are found."""
    module = module_of("gpt2")
    projection = "transformer.h.*.attn.c_proj"
    model = am.HookedModel(
        module,
        {
            "*.heads": am.Hook(projection, side="input"),
            "*.*.output": am.Hook(projection, heads=4, side="input"),
            "*.attention": projection,
            "*.mlp_input": "transformer.h.*.ln_2",
            "*.residual": "transformer.h.*",
        },
        forward=lambda module, tokens, mask: module(tokens, attention_mask=mask.long()),
        context=32,
    )
    am.check_model(model, TOKENS)
    other, vector = am.HuggingFace(module), vector_of(32)
    for kind in ("heads", "attention", "mlp_input"):
        key = LayerKind(1, kind)
        logits, recorded = run(model, {key: Adding(vector)}, [key])
        expected, found = run(other, {key: Adding(vector)}, [key])
        close(logits[:, MASK], expected[:, MASK])
        close(recorded[key][:, MASK], found[key][:, MASK])
    edits = {
        LayerKind(1, "heads"): EditBy(lambda x: x + vector),
        LayerKind(1, "output"): _TurnedHead(),
    }
    close(run(model, edits)[0][:, MASK], run(other, edits)[0][:, MASK])
