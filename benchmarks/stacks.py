"""Eight proxies at one site of a layer of a Hugging Face model, as one stack.

    python benchmarks/stacks.py [--rounds 7] [--layers 12] [--positions 1024]

Up to the first edit a block runs once, for all copies of a stack and all stacks of a batch. Against
it: the same stack on a state whose copies have parted before, so that every copy runs the block.
Both are timed by turns in one process, in seconds of processor time; what they give is compared.

`first` is the first stack of a batch, for which the block runs; `next` any other; `on` such a stack
from the layer on, with the layers behind it and the logits, as a cell of an audit has them (without
its metrics).
"""

import argparse
import statistics
import sys
import time
from dataclasses import replace
from itertools import product
from operator import truediv
from pathlib import Path

import torch
from torch import Tensor

from anamorph.auditing.stacks import StackedEdit
from anamorph.models.base import Batch, LayerKind, State
from anamorph.models.huggingface.model import HuggingFace
from anamorph.simplifications import SVD, Simplification

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from work import Shape, random_model

KINDS = ("residual", "mlp", "mlp_input", "middle", "attention")
COPIES = 8


class Place:
    """A stack at one site.

    Args:
        model: whose block it is.
        own: the state before the block.
        key: the site.
        fits: what stands there, a copy each.
    """

    def __init__(
        self, model: HuggingFace, own: State, key: LayerKind, fits: list[Simplification]
    ) -> None:
        self.model, self.own, self.key, self.fits = model, own, key, fits
        self.parted = replace(own, residual=own.residual.repeat(COPIES, 1, 1, 1))

    def run(self, state: State, stop: int | None = None) -> State:
        """The stack from its layer on."""
        edits = {self.key: StackedEdit(self.key, [{None: fit} for fit in self.fits])}
        return self.model.run(state, edits, first=self.key.layer, stop=stop).state

    def each(self) -> Tensor:
        """The layer, every copy by itself."""
        return self.run(self.parted, self.key.layer + 1).residual

    def first(self) -> Tensor:
        """The layer, once, in a new batch."""
        self.own = replace(self.own)
        return self.next()

    def next(self) -> Tensor:
        """The layer once more."""
        return self.run(self.own, self.key.layer + 1).residual

    def each_on(self) -> Tensor:
        """From the layer on, every copy by itself."""
        return self.model.logits(self.run(self.parted))

    def on(self) -> Tensor:
        """From the layer on."""
        return self.model.logits(self.run(self.own))


def timed(place: Place, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, by turns; all of them are run once before."""
    ways = place.each, place.first, place.next, place.each_on, place.on
    found: dict[str, list[float]] = {way.__name__: [] for way in ways}
    for number in range(rounds + 1):
        for way in ways:
            start = time.process_time()
            way()
            if number:
                found[way.__name__].append(time.process_time() - start)
    return found


@torch.inference_mode()
def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--layers", type=int, default=12)
    arguments.add_argument("--positions", type=int, default=1_024)
    arguments.add_argument("--threads", type=int, default=1)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)

    shape = Shape(layers=options.layers)
    model = HuggingFace(random_model(shape, seed=0))
    random = torch.Generator().manual_seed(1)
    size = options.positions // shape.length, shape.length
    batch = Batch.whole(torch.randint(shape.vocabulary, size, generator=random))
    points = torch.randn(4 * shape.width, shape.width, generator=random)
    fits: list[Simplification] = [SVD(rank=8 * (copy + 1)).fit(points) for copy in range(COPIES)]

    print(f"{'layer':>5} {'site':<10}{'first':>8}{'next':>8}{'on':>8}   ms of `next`, difference")
    with model.session():
        states = [model.start(batch)]
        for layer in range(model.layers):
            states.append(model.layer(layer, states[-1]).state)
        for layer, kind in product((0, model.layers // 2, model.layers - 1), KINDS):
            place = Place(model, states[layer], LayerKind(layer, kind), fits)
            each = place.each()
            apart = float((each - place.next()).abs().max() / each.abs().max())
            seconds = timed(place, options.rounds)
            ratios = [
                statistics.median(map(truediv, seconds[old], seconds[new]))
                for new, old in (("first", "each"), ("next", "each"), ("on", "each_on"))
            ]
            columns = "".join(f"{ratio:>8.2f}" for ratio in ratios)
            milliseconds = 1e3 * statistics.median(seconds["next"])
            print(f"{layer:>5} {kind:<10}{columns}   {milliseconds:.1f}, {apart:.0e}", flush=True)


if __name__ == "__main__":
    main()
