"""`check_model` passes our decoder, and finds a model that is broken in any single way."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import anamorph as am
from anamorph.models.base import Batch, Context, Edit, Edits, LayerKind, Ran, State
from anamorph.models.checks import LAWS
from anamorph.models.decoder import Positions
from anamorph.models.tap import Tap

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
    def layer(self, *args: Any, **kwargs: Any) -> Ran:
        ran = super().layer(*args, **kwargs)
        ran.recorded.pop(LayerKind(1, "value"), None)
        return ran


class HasNoSites(am.Decoder):
    @property
    def sites(self) -> list[Any]:
        return []


class SaysTheSame(am.Decoder):
    def start(self, batch: Batch) -> State:
        return super().start(Batch(torch.zeros_like(batch.tokens), batch.mask))


class ListensToLittle(am.Decoder):
    """Its logits move in the last digits only."""

    def logits(self, state: State, at: Tensor | None = None) -> Tensor:
        logits = super().logits(state, at)
        return 1e-6 * logits + torch.arange(11.0)


class GivesNaN(am.Decoder):
    def logits(self, state: State, at: Tensor | None = None) -> Tensor:
        return super().logits(state, at) * torch.nan


class KeepsOnItself(am.Decoder):
    def start(self, batch: Batch) -> State:
        state = super().start(batch)
        self.first = state.residual
        return state

    def logits(self, state: State, at: Tensor | None = None) -> Tensor:
        length = min(self.first.shape[-2], state.residual.shape[-2])
        logits = super().logits(state, at)
        return logits + self.first[:, :, :length].mean()


class Counts(am.Decoder):
    runs = 0

    def start(self, batch: Batch) -> State:
        state = super().start(batch)
        self.runs += 1
        return replace(state, residual=state.residual + 0.01 * self.runs * self.wave[0])


def changed(ran: Ran, residual: Tensor) -> Ran:
    return Ran(replace(ran.state, residual=residual), ran.recorded)


class KeepsInALayer(am.Decoder):
    """Two threads meet in it, two runs by turns do not."""

    def layer(self, *args: Any, **kwargs: Any) -> Ran:
        self.x = args[1].residual.mean((0, 1, 2))
        ran = super().layer(*args, **kwargs)
        return changed(ran, ran.state.residual + self.x)


class CountsFromTheRight(am.Decoder):
    def start(self, batch: Batch) -> State:
        state = super().start(batch)
        added = 0.1 * batch.tokens.shape[1] * self.wave[0]
        return replace(state, residual=state.residual + added)


class LooksAhead(am.Decoder):
    def start(self, batch: Batch) -> State:
        state = super().start(batch)
        following = (state.residual * state.mask[..., None])[:, :, 1:]
        moved = torch.nn.functional.pad(following, (0, 0, 0, 1))
        return replace(state, residual=moved + state.residual)


class LooksAheadBehindMasks(LooksAhead):
    """Most of its vocabulary is padding."""

    def logits(self, state: State, at: Tensor | None = None) -> Tensor:
        logits = super().logits(state, at)
        logits[..., 4:] = -1e9
        return logits


class LooksAheadAtTheEnd(am.Decoder):
    def start(self, batch: Batch) -> State:
        state = super().start(batch)
        if batch.tokens.shape[1] < 9:
            return state
        residual = state.residual.clone()
        residual[:, :, 7] += residual[:, :, 8] * batch.mask[:, 8, None]
        return replace(state, residual=residual)


class OnlySaysItLooksAhead(am.Decoder):
    causal = False


class LooksAheadWhenEdited(am.Decoder):
    def layer(self, index: int, state: State, edits: Edits | None = None, *rest: Any) -> Ran:
        ran = super().layer(index, state, edits, *rest)
        if not edits or LayerKind(0, "pattern") not in edits:
            return ran
        return changed(ran, ran.state.residual + ran.state.residual.mean(-2, keepdim=True))


class NeverFires(am.Decoder):
    def layer(self, index: int, state: State, edits: Edits | None = None, *rest: Any, **kw: Any):
        kept = {k: v for k, v in (edits or {}).items() if k.kind != "output"}
        return super().layer(index, state, kept, *rest, **kw)


class FiresTwice(am.Decoder):
    def layer(self, *args: Any, **kwargs: Any) -> Ran:
        super().layer(*args, **kwargs)
        return super().layer(*args, **kwargs)


class FiresForNothing(am.Decoder):
    def layer(self, index: int, state: State, edits: Edits | None = None, *rest: Any, **kw: Any):
        if edits and LayerKind(index, "mlp") in edits:
            super().layer(index, state, edits, *rest, **kw)
            edits = {}
            rest = ((), *rest[1:])
        return super().layer(index, state, edits, *rest, **kw)


class FiresForNothingAndRounds(am.Decoder):
    def layer(self, index: int, state: State, edits: Edits | None = None, *rest: Any, **kw: Any):
        after = super().layer(index, state, edits, *rest, **kw)
        if edits and LayerKind(index, "mlp") in edits:
            after = super().layer(index, state, {}, (), *rest[1:], **kw)
        return changed(after, after.state.residual * (1 + 1e-6))


class ForgetsWhatIsRead(am.Decoder):
    def layer(self, *args: Any, **kwargs: Any) -> Ran:
        ran = super().layer(*args, **kwargs)
        return Ran(replace(ran.state, read={}), ran.recorded)


class ShowsAnotherRun(am.Decoder):
    parallel = False

    def layer(self, index: int, state: State, *args: Any, **kwargs: Any) -> Ran:
        if state.read:
            state = replace(state, read={key: x + 0.1 for key, x in state.read.items()})
        return super().layer(index, state, *args, **kwargs)


class LosesRows(am.Decoder):
    """Shows an edit what its own layer computed, but not at some positions."""

    def layer(
        self, index: int, state: State, edits: Any = None, record: Any = (), at: Any = None
    ) -> Ran:
        if at is not None and any(read.layer == index for e in edits.values() for read in e.reads):
            raise am.AnamorphError("rows are lost")
        return super().layer(index, state, edits, record, at)


class Rounds(am.Decoder):
    def layer(self, index: int, state: State, edits: Edits | None = None, *rest: Any, **kw: Any):
        ran = super().layer(index, state, edits, *rest, **kw)
        residual = ran.state.residual
        return changed(ran, residual.bfloat16().float() if edits else residual)


class WrongRows(am.Decoder):
    def layer(
        self, index: int, state: State, edits: Any = None, record: Any = (), at: Any = None
    ) -> Ran:
        return super().layer(index, state, edits, record, None if at is None else at.flip(1))


class MixesCopies(am.Decoder):
    def layer(self, *args: Any, **kwargs: Any) -> Ran:
        ran = super().layer(*args, **kwargs)
        residual = ran.state.residual
        return changed(ran, residual.mean(0, keepdim=True).expand_as(residual))


BROKEN = {
    NoValues: "every site can be recorded",
    HasNoSites: "every site can be recorded",
    SaysTheSame: "other tokens give other logits",
    ListensToLittle: "other tokens give other logits",
    GivesNaN: "other tokens give other logits",
    KeepsOnItself: "a run knows nothing of other runs",
    Counts: "a run knows nothing of other runs",
    KeepsInALayer: "a run knows nothing of other runs",
    CountsFromTheRight: "padding changes nothing",
    LooksAhead: "no position sees its future",
    LooksAheadBehindMasks: "no position sees its future",
    LooksAheadAtTheEnd: "no position sees its future",
    OnlySaysItLooksAhead: "no position sees its future",
    LooksAheadWhenEdited: "no position sees its future",
    NeverFires: "an edit fires exactly once",
    FiresTwice: "an edit fires exactly once",
    FiresForNothing: "an edit fires exactly once",
    FiresForNothingAndRounds: "an edit fires exactly once",
    ForgetsWhatIsRead: "an edit is shown what its run computed",
    ShowsAnotherRun: "an edit is shown what its run computed",
    LosesRows: "an edit is shown what its run computed",
    Rounds: "an edit that changes nothing changes nothing",
    WrongRows: "positions asked for are as among all",
    MixesCopies: "copies run as they would alone",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_each_law_has_a_culprit(kind: type[am.Decoder]) -> None:
    with pytest.raises(AssertionError) as caught:
        am.check_model(decoder(kind), TOKENS)
    assert str(caught.value).startswith(BROKEN[kind])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(3, 8, dtype=torch.long), "equal tokens"),
        (torch.arange(8).repeat(3, 1), "equal tokens in every sequence"),
        (torch.arange(3)[:, None].repeat(1, 8), "at every position"),
        (TOKENS[:1], "at least 2 sequences of 4"),
        (TOKENS[:, :3], r"are \[5, 3\]; expected"),
        (TOKENS[0], r"are \[9\]; expected"),
    ],
)
def test_tokens_with_which_nothing_would_show_are_refused(tokens: Tensor, message: str) -> None:
    for kind in (am.Decoder, LooksAhead):
        with pytest.raises(am.AnamorphError, match=message):
            am.check_model(decoder(kind), tokens)


def test_a_decoder_with_small_weights_keeps_every_law() -> None:
    """Edits of its queries move the logits by less than rounding."""
    model = decoder()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02 if parameter.dim() == 2 else 1)
    am.check_model(model, TOKENS)


def test_no_law_is_left_without_a_culprit() -> None:
    assert set(BROKEN.values()) == set(LAWS)


@pytest.mark.parametrize("wrong", ["all rows", "beside", "at"])
def test_a_tap_that_shows_an_edit_something_else_is_found(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads of the same layer, and rows: what a proxy in the last layer depends on."""
    right = Tap.context

    def context(self: Tap, kind: str, edit: Edit) -> Context:
        found = right(self, kind, edit)
        if wrong == "at":
            return replace(found, at=None)
        read = dict(found.read)
        for key in edit.reads:
            if wrong == "all rows" and key.layer < self.layer:
                read[key] = self.read[key]
            if wrong == "beside" and key.layer == self.layer:
                read[key] = torch.zeros_like(read[key])
        return replace(found, read=read)

    monkeypatch.setattr(Tap, "context", context)
    model = am.Decoder(am.DecoderConfig(20, 12, width=8, mlp=16)).eval()
    with pytest.raises(AssertionError, match="an edit is shown what its run computed"):
        am.check_model(model, torch.randint(20, (3, 8)))
