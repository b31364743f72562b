"""Two models built by hand, and views of them whose faithfulness is known in closed form.

The *head* looks up the item whose key has the sign `+` on the axis of the query; keys are the unit
vectors of two axes. A score of 1/2 for the start token stands against it, whose value is the answer
"z". In distribution everything is on the first axis.

The *MLP* has two features, one for "p" and one for "q"; a token can have either, or both. The
answer is "x" for the first, "y" for the second and "z" for both, which occurs only out of
distribution; and "z" for neither.
"""

from collections.abc import Callable, Sequence
from itertools import count
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

import anamorph as am
from anamorph.models.sites import Site
from anamorph.simplifications import Replacement, Simplification
from anamorph.simplifications.statistics.reservoir import USUAL, Reservoir
from anamorph.tasks import Split, Task

ITEMS = [f"{axis}{sign}{value}" for axis in "ab" for sign in "+-" for value in "xy"]
TOKENS = ("start", "0", "1", "z", "x", "y", *ITEMS, "?a", "?b", "p", "q", "pq")
OF = {name: number for number, name in enumerate(TOKENS)}
BITS = 12  # fillers that tell sequences apart; they do nothing
SHARP = 40.0


class Head(nn.Module):
    """Softmax attention over keys in the plane, from the last token to all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = (nn.Embedding(len(TOKENS), 2) for _ in range(2))
        self.value = nn.Embedding(len(TOKENS), len(TOKENS))
        for part in (self.query, self.key, self.value):
            nn.init.zeros_(part.weight)
        with torch.no_grad():
            for axis, name in enumerate("ab"):
                self.query.weight[OF[f"?{name}"], axis] = 1
                for sign in "+-":
                    for value in "xy":
                        item = OF[f"{name}{sign}{value}"]
                        self.key.weight[item, axis] = 1 if sign == "+" else -1
                        self.value.weight[item, OF[value]] = 1
            self.value.weight[OF["start"], OF["z"]] = 1

    def forward(self, tokens: Tensor) -> Tensor:
        scores = self.query(tokens) @ self.key(tokens).mT + 0.5 * (tokens == OF["start"])[:, None]
        hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
        return (SHARP * scores).masked_fill(hidden, -torch.inf).softmax(-1) @ self.value(tokens)


class Features(nn.Module):
    """An MLP of two features, each with a direction of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.given, self.mlp = nn.Embedding(len(TOKENS), 2), nn.ReLU()
        self.answer = nn.Linear(2, len(TOKENS))
        for parameter in (self.given.weight, *self.answer.parameters()):
            nn.init.zeros_(parameter)
        with torch.no_grad():
            self.answer.bias[OF["z"]] = 0.1
            for name, features in (("p", (1, 0)), ("q", (0, 1)), ("pq", (1.2, 1))):
                self.given.weight[OF[name]] = torch.tensor(features)
            for name, row in (("x", (1, 0)), ("y", (0, 1)), ("z", (0.75, 0.75))):
                self.answer.weight[OF[name]] = torch.tensor(row)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.answer(self.mlp(self.given(tokens)))


def head() -> am.HookedModel:
    return am.HookedModel(Head().eval(), {"0.*.key": am.Hook("key", heads=1)})


def mlp() -> am.HookedModel:
    return am.HookedModel(Features().eval(), {"0.mlp_input": "given", "0.mlp": "mlp"})


def task_of(splits: dict[str, Callable[[int], Sequence[str]]], size: int) -> Task:
    """Splits of sequences whose last token is scored; `splits` gives what follows the fillers."""
    number = count()

    def split(name: str, ends: Callable[[int], Sequence[str]]) -> Split:
        rows = [["start", *f"{next(number):0{BITS}b}", *ends(i)] for i in range(size)]
        tokens = np.array([[OF[token] for token in row] for row in rows], np.int32)
        scored = np.zeros(tokens.shape, bool)
        scored[:, -1] = True
        offsets = np.arange(size + 1) * tokens.shape[1]
        role = name if name in ("train", "iid") else "ood"
        return Split(name, role, tokens.ravel(), offsets, scored.ravel())

    made = {name: split(name, ends) for name, ends in splits.items()}
    candidates = np.array([OF[name] for name in "zxy"])
    return Task("known", {"name": "known"}, TOKENS, candidates, made)


def looked_up(axis: str, answer: str | None = None) -> Callable[[int], list[str]]:
    """Two items of an axis, the query, and the right answer or another."""

    def ends(i: int) -> list[str]:
        right, wrong = "xy"[i // 2 % 2], "xy"[i // 4 % 2]
        items = [f"{axis}+{right}", f"{axis}-{wrong}"]
        return [*items[:: 1 if i // 8 % 2 else -1], f"?{axis}", answer or right]

    return ends


class Aimless(Simplification):
    """Keeps one direction of the plane, at an angle that nothing was learnt from."""

    name: ClassVar[str] = "aimless"
    size_name: ClassVar[str | None] = "rank"
    control: ClassVar[str | None] = "random"

    def __init__(self, *, rank: int = 1, degrees: int) -> None:
        self.rank, self.degrees = rank, degrees

    def __call__(self, x: Tensor) -> Tensor:
        angle = torch.tensor(self.degrees * torch.pi / 180)
        axis = torch.stack([angle.cos(), angle.sin()]).to(x)
        return (x @ axis)[..., None] * axis


class Largest(Replacement):
    """A transcoder: the `k` largest features, with the decoder that is best on what it saw."""

    name: ClassVar[str] = "largest"
    size_name: ClassVar[str | None] = "k"

    decoder_: Tensor

    def __init__(self, *, k: int) -> None:
        self.k = k

    def reads(self, site: Site) -> tuple[Site, ...]:
        return (Site(site.layer, None, "mlp_input"),)

    def statistic(self, *dims: int) -> Reservoir:
        return Reservoir(capacity=USUAL, seed=0)

    def learn(self, statistic: Reservoir) -> Self:
        read, written = statistic.points().split(2, dim=1)
        self.decoder_ = torch.linalg.pinv(self._code(read)) @ written
        return self

    def __call__(self, x: Tensor) -> Tensor:
        return self._code(x) @ self.decoder_.to(x)

    def _code(self, x: Tensor) -> Tensor:
        features = x.relu()
        return features * (features >= features.topk(self.k, dim=-1).values[..., -1:])


class OneFeature(Replacement):
    """The first `k` features and no others, whatever the others are: nothing is learnt."""

    name: ClassVar[str] = "first"
    size_name: ClassVar[str | None] = "k"
    control: ClassVar[str | None] = "random"

    def __init__(self, *, k: int) -> None:
        self.k = k

    def reads(self, site: Site) -> tuple[Site, ...]:
        return (Site(site.layer, None, "mlp_input"),)

    def __call__(self, x: Tensor) -> Tensor:
        return x.relu() * (torch.arange(x.shape[-1], device=x.device) < self.k)
