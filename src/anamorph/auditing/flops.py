"""How many floating-point operations a work takes: counted from shapes, before anything runs.

The rule, which leaves out everything but products of matrices (a product of [a, b] and [b, c] is
2·a·b·c operations):

1. A layer multiplies each position by its matrices; attention makes scores of all pairs of
   positions of a sequence, and mixes values by them. The last layer does both at scored positions
   only, but for keys and values. Logits are made at scored positions.
2. The model runs once a work. A proxy runs from the first layer on that it reads or edits; up to
   its first edit, a stack of proxies is computed once.
3. Blocks that run as a whole (`Model.whole_blocks`) do so at all positions of the last layer, too,
   and once for all stacks of a layer, beside what comes behind the first edit.
4. Where attention is compared, it is made once more at scored positions, but in the last layer.
5. Training takes three times what going forward does; fitting, one run up to the last layer that is
   seen. What simplifications compute themselves, statistics and metrics is not counted.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from anamorph.auditing.engine import Settings
from anamorph.auditing.proxies import Heads
from anamorph.errors import AnamorphError
from anamorph.models.base import Model
from anamorph.models.layout import layout_of
from anamorph.models.sites import Site
from anamorph.simplifications import (
    ProxySpec,
    Simplified,
    changes_weights,
    first_layer,
    placements,
)
from anamorph.tasks import Split

BEFORE = {
    "norm_1": 0,
    **dict.fromkeys(("query", "key", "value"), 1),
    "pattern": 2,
    **dict.fromkeys(("output", "heads"), 3),
    **dict.fromkeys(("attention", "middle", "norm_2", "mlp_input"), 4),
}
"""How many of a layer's products (`LayerShape.products`) come before a kind of site; else all 5."""
ALL = 5


class Load(NamedTuple):
    """What is run: some sequences.

    Attributes:
        sequences: how many.
        tokens: up to the last prediction of each, if nothing behind it is seen.
        scored: scored positions.
        pairs: the sum of squares of the sequences' tokens.
        scored_pairs: the sum over scored positions of their sequences' tokens.
    """

    sequences: float
    tokens: float
    scored: float
    pairs: float
    scored_pairs: float

    @classmethod
    def of(cls, split: Split, causal: bool = True) -> "Load":
        """All sequences of a split."""
        owner = np.repeat(np.arange(len(split)), split.lengths)
        place = np.arange(len(split.tokens)) - np.repeat(split.offsets[:-1], split.lengths)
        scored = np.bincount(owner[split.scored], minlength=len(split))
        tokens = split.lengths.astype(np.int64)
        if causal:  # a token is predicted at the position before it
            tokens = np.zeros(len(split), np.int64)
            np.maximum.at(tokens, owner[split.scored], place[split.scored])
        sums = tokens, scored, tokens**2, tokens * scored
        return cls(len(split), *(float(x.sum()) for x in sums))

    @classmethod
    def whole(cls, lengths: Iterable[int]) -> "Load":
        """Sequences that are predicted at every position."""
        n = np.array(list(lengths), np.float64)
        return cls(len(n), n.sum(), n.sum(), (n * n).sum(), (n * n).sum())

    def times(self, factor: float) -> "Load":
        """So many times as much."""
        return Load(*(factor * number for number in self))


class LayerShape(NamedTuple):
    """The sizes of a layer; `mlp` is how many numbers the MLP's matrices have."""

    width: int
    heads: int
    key_heads: int
    dim: int
    mlp: int

    def products(self, load: Load, last: bool) -> tuple[float, float, float, float, float]:
        """Operations of queries, keys and values; scores; mixing; outputs; the MLP."""
        tokens, pairs = (load.scored, load.scored_pairs) if last else (load.tokens, load.pairs)
        stream, inner = 2 * self.width * self.dim, 2 * self.heads * self.dim * pairs
        inputs = stream * (2 * self.key_heads * load.tokens + self.heads * tokens)
        return inputs, inner, inner, stream * self.heads * tokens, 2 * self.mlp * tokens


class Placed(NamedTuple):
    """Where a proxy differs from the model.

    Attributes:
        first: the first layer that it reads or edits; the number of layers for the identity.
        edit: the layer of its first edit, and how many of that layer's products come before it.
        compared: heads whose attention is compared, by layer.
        stack: proxies for which this is equal may run together.
    """

    first: int
    edit: tuple[int, int]
    compared: dict[int, int]
    stack: object


class ModelShape(NamedTuple):
    """The sizes of a model's layers, the number of its logits, and whether its blocks run whole."""

    layers: tuple[LayerShape, ...]
    vocabulary: int
    whole_blocks: bool

    @classmethod
    def of(cls, model: Model) -> "ModelShape | None":
        """Those of a model; None if it does not say which matrices its layers have."""
        layout = layout_of(model.sites, model.layers)
        try:
            layers = [_layer(model, n, *layout[n]) for n in range(model.layers)]
        except AnamorphError:
            return None
        return cls(tuple(layers), model.vocabulary, model.whole_blocks)

    def forward(self, load: Load, stop: int | None = None) -> float:
        """One run of the model up to a layer, without logits; or all of it, with them."""
        some = range(len(self.layers) if stop is None else stop)
        layers = sum(sum(self._products(load, n)) for n in some)
        return layers + (self._logits(load) if stop is None else 0.0)

    def training(self, load: Load) -> float:
        """One step on sequences that are predicted at every position."""
        return 3 * self.forward(load)

    def work(self, load: Load, proxies: Sequence[Placed], settings: Settings) -> float:
        """A work: the model, and proxies on the same sequences."""
        heads = {n for proxy in proxies for n in proxy.compared}
        total = self.forward(load) + self._attention(load, heads)
        for alike in _alike(proxies):
            proxy, copies = alike[0], len(alike)
            stacks = 1 if self.whole_blocks else -(-copies // self._stack(load, proxy, settings))
            layers = range(proxy.first, len(self.layers))
            for n in layers:
                products = self._products(load, n)
                layer, before = proxy.edit
                shared = ALL if n < layer else before if n == layer else 0
                once = ALL if n == layer and before and self.whole_blocks else shared
                total += stacks * sum(products[:once]) + copies * sum(products[shared:])
            total += copies * self._attention(load, {*proxy.compared} & {*layers})
            total += copies * self._logits(load)
        return total

    def _products(self, load: Load, layer: int) -> tuple[float, ...]:
        last = layer == len(self.layers) - 1 and not self.whole_blocks
        return self.layers[layer].products(load, last)

    def _logits(self, load: Load) -> float:
        return 2 * self.layers[-1].width * self.vocabulary * load.scored

    def _attention(self, load: Load, layers: Iterable[int]) -> float:
        """Of patterns that are compared, but those of the last layer, which are there anyway."""
        some = [self.layers[n] for n in layers if n < len(self.layers) - 1]
        return sum(2 * shape.heads * shape.dim * load.scored_pairs for shape in some)

    def _stack(self, load: Load, proxy: Placed, settings: Settings) -> int:
        """How many proxies run together: see `anamorph.auditing.proxies.widest`."""
        parts = max(settings.batches, load.tokens / settings.batch_tokens, 1.0)
        queries, tokens = load.scored / parts, load.tokens / parts
        length = load.tokens / max(1.0, load.sequences)
        heads = max(proxy.compared.values(), default=0)
        rows = queries if proxy.first >= len(self.layers) - 1 else tokens
        widest = 4 * max(queries * heads * length, rows * 4 * self.layers[0].width, 1.0)
        return max(1, int(settings.memory // widest))


def placed(proxies: Sequence[ProxySpec], model: Model) -> list[Placed]:
    """Where proxies differ from a model; another model is taken to be as large as the model."""
    sites, layers = model.sites, model.layers
    heads = Heads.of(sites)
    whole = Counter(layer for layer, _ in heads.every)
    of_simplified = placements([p for p in proxies if isinstance(p, Simplified)], sites)
    found = []
    for number, proxy in enumerate(proxies):
        if not isinstance(proxy, Simplified):
            found.append(Placed(0, (0, 0), dict(whole), number))
            continue
        edited = {s: a.simplification for a, some in next(of_simplified) for s in some}
        first, compared = first_layer(edited, layers), heads.compared(edited)
        alone = changes_weights(proxy)
        edits = [(s.layer, BEFORE.get(s.kind, ALL)) for s in edited]
        edit = (first, 0) if alone else min(edits, default=(layers, 0))
        stack = number if alone else (first, compared)
        found.append(Placed(first, edit, dict(Counter(n for n, _ in compared)), stack))
    return found


def _alike(proxies: Sequence[Placed]) -> list[list[Placed]]:
    """Proxies that may run together."""
    found: dict[object, list[Placed]] = {}
    for proxy in proxies:
        found.setdefault(proxy.stack, []).append(proxy)
    return list(found.values())


def _layer(model: Model, layer: int, heads: int, key_heads: int) -> LayerShape:
    """Raises an `AnamorphError` if the model does not say."""
    attention, mlp = (
        {m.module: m for m in model.matrices(Site(layer, None, kind))}.values()
        for kind in ("attention", "mlp")
    )
    numbers = [sum(m.bytes // m.dtype.itemsize for m in some) for some in (attention, mlp)]
    one = next(iter(attention))
    width = one.bytes // one.dtype.itemsize // one.outputs
    dim = numbers[0] // (2 * width * (heads + key_heads)) if heads else 0
    return LayerShape(width, heads, key_heads, dim, numbers[1])
