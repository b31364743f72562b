"""The laws that every model must keep to be audited, as a test that anybody can run."""

from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.models.base import Batch, Context, Edit, EditBy, Edits, LayerKind, Model, Ran
from anamorph.models.layout import KEY_KINDS
from anamorph.models.probe import alike_at_once
from anamorph.models.sites import HEAD_KINDS
from anamorph.models.tap import rows_at
from anamorph.models.wrapped import largest_difference, same_up_to_rounding

Check = Callable[[Model, Tensor], None]

BEFORE = {"output": "query", "heads": "output", "attention": "heads", "mlp_input": "middle"}
BEFORE |= {"mlp": "mlp_input", "residual": "mlp"}
"""A kind that a layer computes before another, where it has both."""


@torch.inference_mode()
def check_model(model: Model, tokens: Tensor) -> None:
    """Check a model against every law that the audit relies on.

    Args:
        model: in inference mode, without dropout. It is not changed. If it says that it is not
            `causal`, positions may see their future, and some must.
        tokens: [batch, position] token ids that it knows, at least 2 sequences of 4, on its device;
            different ones, or nothing would show.

    Raises:
        AssertionError: if a law is broken; the message starts with the law.
        AnamorphError: if nothing can be checked with these tokens.
    """
    if tokens.dim() != 2 or tokens.shape[0] < 2 or tokens.shape[1] < 4:
        raise AnamorphError(
            f"The tokens are {list(tokens.shape)}; expected [batch, position] with at least 2 "
            "sequences of 4."
        )
    if bool((tokens == tokens[:1]).all()) or bool((tokens == tokens[:, :1]).all()):
        raise AnamorphError(
            "With equal tokens in every sequence or at every position a broken model looks like a "
            "good one; give different ones, such as torch.randint(0, 50, (3, 10))."
        )
    for law, check in LAWS.items():
        try:
            check(model, tokens)
        except Exception as error:
            raise AssertionError(f"{law}: {type(model).__name__}: {error}") from error


def _recorded(model: Model, tokens: Tensor) -> None:
    _require(len(model.sites) > 0, "it has no sites")
    batch, length = tokens.shape
    counts = Counter(LayerKind(site.layer, site.kind) for site in model.sites)
    recorded = model.run(Batch.whole(tokens), record=counts).recorded
    for key, heads in counts.items():
        _require(key in recorded, f"layer {key.layer} records no {key.kind}, which is a site")
        x = recorded[key]
        expected = [1, batch, *([heads] if key.kind in HEAD_KINDS else []), length]
        _require(
            list(x.shape[:-1]) == expected and (key.kind != "pattern" or x.shape[-1] == length),
            f"{key.kind} of layer {key.layer} is {list(x.shape)}; expected {expected} and one more",
        )


def _padding(model: Model, tokens: Tensor) -> None:
    lengths = [max(1, tokens.shape[1] - 1 - i) for i in range(len(tokens))]
    columns = torch.arange(tokens.shape[1], device=tokens.device)
    mask = columns < torch.tensor(lengths, device=tokens.device)[:, None]
    for filler in tokens[0, 0], tokens[-1, -1]:
        padded = _run(model, Batch(tokens.where(mask, filler), mask))
        for row, length in enumerate(lengths):
            alone = _run(model, tokens[row : row + 1, :length])
            _same(padded[:, row : row + 1, :length], alone, f"sequence {row} of {length} tokens")


def _listening(model: Model, tokens: Tensor) -> None:
    half = tokens.shape[1] // 2
    changed = _changed(tokens, half)
    usual, other = _run(model, tokens), _run(model, changed)
    for logits, given in (usual, tokens), (other, changed):
        _require(not bool(logits.isnan().any()), f"it gives NaN for tokens such as {given[0]}")
    for row in range(len(tokens)):
        differs = not same_up_to_rounding(other[:, row, half:], usual[:, row, half:])
        _require(differs, f"sequence {row} gives the same logits with other tokens from {half} on")


def _apart(model: Model, tokens: Tensor) -> None:
    other = _changed(tokens, 0)[:, : tokens.shape[1] - 1]
    alone, beside = _run(model, tokens), _run(model, other)
    _same(_run(model, tokens), alone, "logits of a run after another one")
    states = [model.start(Batch.whole(x)) for x in (tokens, other)]
    for layer in range(model.layers):
        states = [model.layer(layer, state).state for state in states]
    for state, expected in zip(states, (alone, beside), strict=True):
        _same(model.logits(state), expected, "logits of two runs by turns")
    if model.parallel:
        alike = alike_at_once(partial(_run, model), (tokens, other), same_up_to_rounding, 0.2)
        _require(alike, "it says that it is parallel, but runs in two threads differ from one")


def _causality(model: Model, tokens: Tensor) -> None:
    length = tokens.shape[1]
    seen = []
    for cut in sorted({1, length // 2, length - 1}):
        other = _changed(tokens, cut)
        keys = [None, *_keys(model)] if model.causal and cut == length // 2 else [None]
        for key in keys:
            change = _one_hot if key is not None and key.kind == "pattern" else _saturated
            edits = {} if key is None else {key: EditBy(change)}
            before, after = (_run(model, x, edits)[:, :, :cut] for x in (tokens, other))
            where = "unedited" if key is None else f"with {key.kind} of layer {key.layer} edited"
            if model.causal:
                _same(before, after, f"{where}, before position {cut}, where the tokens change,")
            seen.append(not same_up_to_rounding(before, after))
    _require(model.causal or any(seen), "it says that it is not causal, but no position does")


def _firing(model: Model, tokens: Tensor) -> None:
    whole = _run(model, tokens)
    for key in _keys(model):
        for at in (None, _some_rows(tokens)):
            counted = EditBy(torch.zeros_like)
            ran = model.run(Batch.whole(tokens), {key: counted}, [key], at)
            edited, place = _logits(model, ran), f"{key.kind} of layer {key.layer}"
            _require(counted.fired == 1, f"the edit of {place} fired {counted.fired} times")
            kept = ran.recorded.get(key)
            _require(kept is not None and not kept.any(), f"{place} is recorded before its edit")
            usual = rows_at(whole, at)
            if same_up_to_rounding(edited, usual):  # it may be close to 0 anyway
                edited = _run(model, tokens, {key: EditBy(_noise)}, at)
            changed = not same_up_to_rounding(edited, usual)
            _require(changed, f"what an edit makes of {place} goes nowhere")


def _reading(model: Model, tokens: Tensor) -> None:
    keys = _keys(model)
    for key in keys:
        for read in [other for other in keys if other.layer < key.layer][-2:]:
            _read_rightly(model, tokens, read, key)
        beside = LayerKind(key.layer, BEFORE.get(key.kind, ""))
        if beside in keys:
            try:
                model.run(Batch.whole(tokens), {key: _Reads(beside)})
            except AnamorphError:  # this model computes it later, and says so
                continue
            _read_rightly(model, tokens, beside, key)


def _read_rightly(model: Model, tokens: Tensor, read: LayerKind, key: LayerKind) -> None:
    """Whether an edit of one tensor is shown another, at all positions and at some."""
    edit = _Reads(read)
    whole = model.run(Batch.whole(tokens), {key: edit}, [read]).recorded[read].clone()
    for at in (None, _some_rows(tokens)):
        model.run(Batch.whole(tokens), {key: edit}, at=at)
        rows = None if read.kind in KEY_KINDS else edit.context.at
        what = f"{read.kind} of layer {read.layer}, read by an edit of layer {key.layer},"
        _same(edit.context.read[read], rows_at(whole, rows), what)
        told = torch.equal(edit.context.tokens, tokens) and bool(edit.context.mask.all())
        _require(told, f"an edit of layer {key.layer} is told of other tokens")


def _identity(model: Model, tokens: Tensor) -> None:
    usual = _run(model, tokens)
    for key in _keys(model):
        edited = _run(model, tokens, {key: EditBy(torch.clone)})
        _same(edited, usual, f"with {key.kind} of layer {key.layer} edited to itself")


def _at(model: Model, tokens: Tensor) -> None:
    at = _some_rows(tokens)
    keys = [key for key in _keys(model) if key.kind == "pattern"]
    everywhere = model.run(Batch.whole(tokens), record=keys)
    usual = _logits(model, everywhere)
    there = model.run(Batch.whole(tokens), record=keys, at=at)
    _same(_logits(model, there), rows_at(usual, at), "logits at some positions")
    for key in keys:
        full, rows = everywhere.recorded[key], there.recorded[key]
        _same(rows, rows_at(full, at), f"pattern rows of layer {key.layer}", scale=1)


def _copies(model: Model, tokens: Tensor) -> None:
    for key in _keys(model):
        for at in (None, _some_rows(tokens)):
            both = _run(model, tokens, {key: EditBy(_both, copies=2)}, at)
            first = _run(model, tokens, {key: EditBy(lambda x: x / 2)}, at)
            second = _run(model, tokens, {key: EditBy(_saturated)}, at)
            what = f"two proxies stacked at {key.kind} of layer {key.layer}"
            _same(both, torch.cat([first, second]), what)


LAWS: dict[str, Check] = {
    "every site can be recorded": _recorded,
    "other tokens give other logits": _listening,
    "a run knows nothing of other runs": _apart,
    "padding changes nothing": _padding,
    "no position sees its future": _causality,
    "an edit fires exactly once": _firing,
    "an edit is shown what its run computed": _reading,
    "an edit that changes nothing changes nothing": _identity,
    "positions asked for are as among all": _at,
    "copies run as they would alone": _copies,
}
"""Every law by its text, in the order in which they are checked."""


class _Reads(Edit):
    """Changes nothing, and remembers what it was shown."""

    context: Context

    def __init__(self, *reads: LayerKind) -> None:
        self.reads = reads

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        self.context = context
        return x.clone()


def _run(
    model: Model, tokens: Tensor | Batch, edits: Edits | None = None, at: Tensor | None = None
) -> Tensor:
    """[copy, batch, query, vocabulary] logits of a whole run."""
    batch = tokens if isinstance(tokens, Batch) else Batch.whole(tokens)
    return _logits(model, model.run(batch, edits, at=at))


def _logits(model: Model, ran: Ran) -> Tensor:
    return model.logits(ran.state).clone()  # the model may write over them in its next run


def _keys(model: Model) -> list[LayerKind]:
    return sorted({LayerKind(site.layer, site.kind) for site in model.sites})


def _some_rows(tokens: Tensor) -> Tensor:
    """[batch, 2] a pair of positions, another one for each sequence."""
    batch, length = tokens.shape
    first = torch.arange(batch, device=tokens.device) % length
    return torch.stack([first, (first + length // 2) % length], dim=1)


def _changed(tokens: Tensor, cut: int) -> Tensor:
    """The same [batch, position] tokens, but from a position on every one is another of them."""
    known, place = torch.unique(tokens, return_inverse=True)
    step = 1 + torch.arange(tokens.numel(), device=tokens.device).view_as(tokens) % (len(known) - 1)
    other = known[(place + step) % len(known)]
    return torch.cat([tokens[:, :cut], other[:, cut:]], dim=1)


def _saturated(x: Tensor) -> Tensor:
    """Something of size 1, however small what stood there."""
    return (30 * x).tanh()


def _both(x: Tensor) -> Tensor:
    """Two proxies in one edit, of one copy or of one each."""
    return torch.stack([x[0] / 2, _saturated(x[-1])])


def _noise(x: Tensor) -> Tensor:
    """Something large that differs by position, the same every time."""
    noise = torch.randn(x.shape[-2:], generator=torch.Generator().manual_seed(0))
    return (1000 * noise).to(x).expand_as(x)


def _one_hot(x: Tensor) -> Tensor:
    return torch.zeros_like(x).scatter_(-1, x.argmax(-1, keepdim=True), 1.0)


def _same(a: Tensor, b: Tensor, what: str, scale: float | None = None) -> None:
    _require(a.shape == b.shape, f"{what} are {list(a.shape)}; expected {list(b.shape)}")
    _require(not bool(a.isnan().any()), f"{what} hold NaN")
    _require(not bool(b.isnan().any()), f"what {what} should be holds NaN")
    same = same_up_to_rounding(a, b, scale=scale)
    _require(same, f"{what} differ by up to {largest_difference(a, b):.2g}")


def _require(kept: bool, otherwise: str) -> None:
    if not kept:
        raise AssertionError(otherwise)
