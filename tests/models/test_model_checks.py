"""`check_model` passes our decoder, and finds a model that is broken in any single way."""

from typing import Any

import pytest
import torch
from torch import Tensor

import anamorph as am
from anamorph.models.base import Batch, Edits, Key, Recording, State
from anamorph.models.checks import LAWS
from anamorph.models.decoder import Positions

TOKENS = torch.randint(0, 11, (5, 9), generator=torch.Generator().manual_seed(0))


def decoder(kind: type[am.Decoder] = am.Decoder, **shape: Any) -> am.Decoder:
    torch.manual_seed(0)
    config = {"vocabulary": 11, "context": 12, "heads": 2, "width": 8, "mlp": 16} | shape
    return kind(am.DecoderConfig(**config)).eval()


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (2, 2), (3, 1)])
def test_the_decoder_keeps_every_law(positions: Positions, layers: int, heads: int) -> None:
    am.check_model(decoder(positions=positions, layers=layers, heads=heads), TOKENS)


class NoValues(am.Decoder):
    def layer(self, *args: Any, **kwargs: Any) -> State:
        record = args[3] if len(args) > 3 else kwargs.get("record")
        state = super().layer(*args, **kwargs)
        if record and Key(1, "value") in record:
            record[Key(1, "value")] = None
        return state


class CountsFromTheRight(am.Decoder):
    def start(self, batch: Batch) -> State:
        state = super().start(batch)
        return State(state.residual + 0.1 * batch.tokens.shape[1] * self.wave[0], state.mask)


class LooksAhead(am.Decoder):
    def start(self, batch: Batch) -> State:
        state = super().start(batch)
        following = (state.residual * state.mask[..., None])[:, :, 1:]
        return State(torch.nn.functional.pad(following, (0, 0, 0, 1)) + state.residual, state.mask)


class LooksAheadWhenEdited(am.Decoder):
    def layer(
        self,
        index: int,
        state: State,
        edits: Edits | None = None,
        record: Recording | None = None,
        at: Tensor | None = None,
    ) -> State:
        state = super().layer(index, state, edits, record, at)
        if not edits or Key(0, "pattern") not in edits:
            return state
        return State(state.residual + state.residual.mean(-2, keepdim=True), state.mask, state.at)


class NeverFires(am.Decoder):
    def layer(self, index: int, state: State, edits: Edits | None = None, *rest: Any, **kw: Any):
        kept = {k: v for k, v in (edits or {}).items() if k.kind != "output"}
        return super().layer(index, state, kept, *rest, **kw)


class FiresTwice(am.Decoder):
    def layer(self, *args: Any, **kwargs: Any) -> State:
        super().layer(*args, **kwargs)
        return super().layer(*args, **kwargs)


class FiresForNothing(am.Decoder):
    def layer(self, index: int, state: State, edits: Edits | None = None, *rest: Any, **kw: Any):
        if edits and Key(index, "mlp") in edits:
            super().layer(index, state, edits, *rest, **kw)
            edits = {}
            rest = (None, *rest[1:])
        return super().layer(index, state, edits, *rest, **kw)


class Rounds(am.Decoder):
    def layer(self, index: int, state: State, edits: Edits | None = None, *rest: Any, **kw: Any):
        state = super().layer(index, state, edits, *rest, **kw)
        residual = state.residual.bfloat16().float() if edits else state.residual
        return State(residual, state.mask, state.at)


class WrongRows(am.Decoder):
    def layer(self, *args: Any, at: Tensor | None = None, **kwargs: Any) -> State:
        return super().layer(*args, at=None if at is None else at.flip(1), **kwargs)


class MixesCopies(am.Decoder):
    def layer(self, *args: Any, **kwargs: Any) -> State:
        state = super().layer(*args, **kwargs)
        mixed = state.residual.mean(0, keepdim=True).expand_as(state.residual)
        return State(mixed, state.mask, state.at)


BROKEN = {
    NoValues: "every site can be recorded",
    CountsFromTheRight: "padding changes nothing",
    LooksAhead: "no position sees its future",
    LooksAheadWhenEdited: "no position sees its future",
    NeverFires: "an edit fires exactly once",
    FiresTwice: "an edit fires exactly once",
    FiresForNothing: "an edit fires exactly once",
    Rounds: "an edit that changes nothing changes nothing",
    WrongRows: "positions asked for are as among all",
    MixesCopies: "copies run as they would alone",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_each_law_has_a_culprit(kind: type[am.Decoder]) -> None:
    with pytest.raises(AssertionError) as caught:
        am.check_model(decoder(kind), TOKENS)
    assert str(caught.value).startswith(BROKEN[kind])


def test_no_law_is_left_without_a_culprit() -> None:
    assert set(BROKEN.values()) == set(LAWS)
