"""The laws that every model must keep to be audited, as a test that anybody can run."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from anamorph.models.base import Batch, Edit, Edits, Key, Model, Recording
from anamorph.models.sites import HEAD_KINDS
from anamorph.models.wrapped import largest_difference, same_up_to_rounding

Check = Callable[[Model, Tensor], None]


@torch.inference_mode()
def check_model(model: Model, tokens: Tensor) -> None:
    """Check a model against every law that the audit relies on.

    Args:
        model: in inference mode, without dropout. It is not changed. If it says that it is not
            `causal`, positions may see their future.
        tokens: [batch, position] token ids that it knows, at least 2 sequences of 4, on its device.

    Raises:
        AssertionError: if a law is broken; the message starts with the law.
    """
    for law, check in LAWS.items():
        if check is _causality and not model.causal:
            continue
        try:
            check(model, tokens)
        except Exception as error:
            raise AssertionError(f"{law}: {type(model).__name__}: {error}") from error


def _recorded(model: Model, tokens: Tensor) -> None:
    batch, length = tokens.shape
    heads = {key: sum(s[::2] == key for s in model.sites) for key in _keys(model)}
    recording: Recording = dict.fromkeys(heads)
    _run(model, tokens, record=recording)
    for key in heads:
        x = recording[key]
        _require(x is not None, f"layer {key.layer} records no {key.kind}, which is a site")
        expected = [1, batch, *([heads[key]] if key.kind in HEAD_KINDS else []), length]
        assert x is not None
        _require(
            list(x.shape[:-1]) == expected and (key.kind != "pattern" or x.shape[-1] == length),
            f"{key.kind} of layer {key.layer} is {list(x.shape)}; expected {expected} and one more",
        )


def _padding(model: Model, tokens: Tensor) -> None:
    lengths = [max(1, tokens.shape[1] - 1 - i) for i in range(len(tokens))]
    columns = torch.arange(tokens.shape[1], device=tokens.device)
    mask = columns < torch.tensor(lengths, device=tokens.device)[:, None]
    for filler in tokens[0, 0], tokens[-1, -1]:
        padded = _run(model, tokens.where(mask, filler), mask=mask)
        for row, length in enumerate(lengths):
            alone = _run(model, tokens[row : row + 1, :length])
            _same(padded[:, row : row + 1, :length], alone, f"sequence {row} of {length} tokens")


def _causality(model: Model, tokens: Tensor) -> None:
    half = tokens.shape[1] // 2
    other = torch.cat([tokens[:, :half], tokens[:, half:].roll(1, 0).flip(1)], dim=1)
    for key in [None, *_keys(model)]:
        edits = {} if key is None else {key: _one_hot if key.kind == "pattern" else torch.tanh}
        before, after = (_run(model, x, edits)[:, :, :half] for x in (tokens, other))
        where = "unedited" if key is None else f"with {key.kind} of layer {key.layer} edited"
        _same(before, after, f"{where}, before position {half}, where the tokens change,")


def _firing(model: Model, tokens: Tensor) -> None:
    usual = _run(model, tokens)
    for key in _keys(model):
        for at in (None, _some_rows(tokens)):
            counted = _Counted(torch.zeros_like)
            recording: Recording = {key: None}
            edited = _run(model, tokens, {key: counted}, recording, at=at)
            place = f"{key.kind} of layer {key.layer}"
            _require(counted.fired == 1, f"the edit of {place} fired {counted.fired} times")
            kept = recording[key]
            _require(kept is not None and not kept.any(), f"{place} is recorded before its edit")
            changed = not torch.equal(edited, usual if at is None else _rows(usual, at))
            _require(changed, f"what an edit makes of {place} goes nowhere")


def _identity(model: Model, tokens: Tensor) -> None:
    usual = _run(model, tokens)
    for key in _keys(model):
        edited = _run(model, tokens, {key: torch.clone})
        _same(edited, usual, f"with {key.kind} of layer {key.layer} edited to itself")


def _at(model: Model, tokens: Tensor) -> None:
    at = _some_rows(tokens)
    keys = [key for key in _keys(model) if key.kind == "pattern"]
    everywhere: Recording = dict.fromkeys(keys)
    usual = _run(model, tokens, record=everywhere)
    there: Recording = dict.fromkeys(keys)
    _same(_run(model, tokens, record=there, at=at), _rows(usual, at), "logits at some positions")
    for key in keys:
        full, rows = everywhere[key], there[key]
        assert full is not None and rows is not None
        _same(rows, _rows(full, at[:, None]), f"pattern rows of layer {key.layer}", scale=1)


def _copies(model: Model, tokens: Tensor) -> None:
    at = _some_rows(tokens)
    for key in _keys(model):
        for rows in (None, at):
            both = _run(model, tokens, {key: _Both()}, at=rows)
            first = _run(model, tokens, {key: lambda x: x / 2}, at=rows)
            second = _run(model, tokens, {key: torch.tanh}, at=rows)
            where = f"stacked at {key.kind} of layer {key.layer}"
            _same(both, torch.cat([first, second]), f"two proxies {where}")


LAWS: dict[str, Check] = {
    "every site can be recorded": _recorded,
    "padding changes nothing": _padding,
    "no position sees its future": _causality,
    "an edit fires exactly once": _firing,
    "an edit that changes nothing changes nothing": _identity,
    "positions asked for are as among all": _at,
    "copies run as they would alone": _copies,
}
"""Every law by its text, in the order in which they are checked."""


class _Counted:
    def __init__(self, edit: Edit) -> None:
        self.edit, self.fired = edit, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.fired += 1
        return self.edit(x)


class _Both:
    """Two proxies in one edit."""

    copies = 2

    def __call__(self, x: Tensor) -> Tensor:
        return torch.stack([x[0] / 2, x[-1].tanh()])  # of one copy, or one of each


def _run(
    model: Model,
    tokens: Tensor,
    edits: Edits | None = None,
    record: Recording | None = None,
    *,
    mask: Tensor | None = None,
    at: Tensor | None = None,
) -> Tensor:
    """[copy, batch, query, vocabulary] logits of a whole run."""
    state = model.start(Batch(tokens, torch.ones_like(tokens).bool() if mask is None else mask))
    for layer in range(model.layers):
        state = model.layer(layer, state, edits, record, at=at)
    return model.logits(state)


def _keys(model: Model) -> Iterator[Key]:
    yield from sorted({Key(site.layer, site.kind) for site in model.sites})


def _some_rows(tokens: Tensor) -> Tensor:
    """[batch, 2] a pair of positions, another one for each sequence."""
    batch, length = tokens.shape
    first = torch.arange(batch, device=tokens.device) % length
    return torch.stack([first, (first + length // 2) % length], dim=1)


def _rows(x: Tensor, at: Tensor) -> Tensor:
    """The positions `at` [batch, (1,) query] of x [copy, batch, (head,) position, dim]."""
    return x.gather(-2, at[None, ..., None].expand(*x.shape[:-2], -1, x.shape[-1]))


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
