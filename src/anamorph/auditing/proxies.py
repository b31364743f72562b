"""What stands in for a model in an audit: its own blocks with simplifications, or another model."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Self

from torch import Tensor

from anamorph.auditing.model_run import Head, ModelRun, Outcome, patterns_of
from anamorph.auditing.stacks import stacked_edits
from anamorph.errors import AnamorphError
from anamorph.models.base import Model, Recorded
from anamorph.models.layout import HeadLayout, layout_of
from anamorph.models.sites import Site
from anamorph.simplifications import FittedProxy, ProxySpec

ATTENTION_KINDS = ("query", "key", "pattern")


class Proxy(ABC):
    """What gives logits, and attention where it can, at the scored positions of a batch.

    Attributes:
        spec: what names and describes it.
        first_layer: the first layer in which it differs from the model; how many layers there are
            if it differs in none.
        heads: the heads over which its attention metrics average; empty if none is compared.
        stack: proxies for which this is equal run together. It sorts them, too.
        parallel: whether two threads may run it at once.
    """

    def __init__(self, spec: ProxySpec, first_layer: int, heads: tuple[Head, ...]) -> None:
        self.spec, self.first_layer, self.heads = spec, first_layer, heads
        self.stack: tuple[Any, ...] = (first_layer, heads, "")
        self.parallel = True

    def session(self) -> AbstractContextManager[None]:
        """Prepare it once for many runs; afterwards everything is as it was before."""
        return nullcontext()

    @abstractmethod
    def bytes(self, run: ModelRun) -> int:
        """Bytes of the widest tensor by which a stack grows with it, on the batch of a run."""

    @abstractmethod
    def run(self, run: ModelRun, stack: Sequence[Self]) -> Outcome:
        """What a stack that it belongs to makes of the batch of a run, a copy a proxy.

        Raises:
            AnamorphError: if something of a proxy does not take effect.
        """


class SimplifiedProxy(Proxy):
    """The model with simplifications in place. It starts from the model's own states.

    Attention is compared at the heads whose queries, keys or patterns are edited; if there are
    none, at all heads from the first edited layer on (of the whole model for the identity).

    Args:
        fitted: what is put in place.
        model: where.
    """

    def __init__(self, fitted: FittedProxy, model: Model) -> None:
        heads = attention_heads(fitted.by_site, model.sites)
        super().__init__(fitted.proxy, fitted.first_layer, heads)
        self.fitted = fitted

    def bytes(self, run: ModelRun) -> int:
        """Of attention's scores, or of an MLP's hidden units."""
        return widest(self, run)

    def run(self, run: ModelRun, stack: Sequence[Self]) -> Outcome:
        """Everything from the first edited layer on.

        Raises:
            AnamorphError: if an edit does not fire exactly once.
        """
        fitted = [proxy.fitted for proxy in stack]
        led = any(s.beside_model for proxy in fitted for s in proxy.by_site.values())
        first, edits = self.first_layer, stacked_edits(fitted, led)
        # What comes before the first edit is the model's own; the identity runs nothing again.
        record, at = patterns_of(self.heads), run.scored.targets.at
        patterns = Recorded({s: run.outcome.patterns[s] for s in record if s.layer < first})
        state, found = run.model.run(run.states[first], edits, record, at, first)
        for key, edit in edits.items():
            if edit.fired != 1:
                raise AnamorphError(
                    f"The edit of {key.kind} in layer {key.layer} fired {edit.fired} times in one "
                    "run; expected once. The model does not pass this tensor on, so nothing was "
                    "measured."
                )
        if led:  # the model itself ran along as the first copy
            state = state.each(_without_first)
            found = {key: _without_first(x) for key, x in found.items()}
        return Outcome(run.model, state, patterns | found)


class ModelProxy(Proxy):
    """Another model with the same vocabulary. It is run by itself, from the tokens on.

    Attention is compared at all heads, if both models have the same.

    Args:
        spec: what names it.
        other: the other model, in inference mode.
        model: the model that it is compared with.
    """

    def __init__(self, spec: ProxySpec, other: Model, model: Model) -> None:
        heads, others = (tuple(sorted(_heads(some.sites))) for some in (model, other))
        super().__init__(spec, 0, heads if heads == others else ())
        self.stack = (0, self.heads, str(spec))
        self.parallel = other.parallel
        self.other = other

    def session(self) -> AbstractContextManager[None]:
        """The other model's."""
        return self.other.session()

    def bytes(self, run: ModelRun) -> int:
        """Of its logits."""
        return 4 * run.output.logits.numel()

    def run(self, run: ModelRun, stack: Sequence[Self]) -> Outcome:
        """All layers of the other model."""
        scored = run.scored.to(self.other.device)
        ran = self.other.run(scored.batch, record=patterns_of(self.heads), at=scored.targets.at)
        return Outcome(self.other, ran.state, ran.recorded)


def _without_first(x: Tensor) -> Tensor:
    """The copies [copy, ...] but for the first, if they differ at all."""
    return x if len(x) == 1 else x[1:]


def widest(proxy: Proxy, run: ModelRun) -> int:
    """Bytes of attention's scores, or of an MLP's hidden units, from a proxy's first layer on."""
    batch, positions = run.states[0].mask.shape
    queries = run.scored.targets.at.shape[1]
    width = run.states[0].residual.shape[-1]
    rows = queries if proxy.first_layer >= run.model.layers - 1 else positions
    heads = len({head for _, head in proxy.heads})
    return 4 * batch * max(queries * heads * positions, rows * 4 * width)


def attention_heads(edited: Collection[Site], sites: Sequence[Site]) -> tuple[Head, ...]:
    """The heads over which the attention metrics of simplifications average.

    Args:
        edited: the sites that are edited.
        sites: the model's.
    """
    return Heads.of(sites).compared(edited)


class Heads(NamedTuple):
    """The heads of a model's attention: all of them, and which read which keys, layer by layer."""

    every: frozenset[Head]
    layout: tuple[HeadLayout, ...]

    @classmethod
    def of(cls, sites: Sequence[Site]) -> "Heads":
        """Those that the sites of a model tell of."""
        return cls(frozenset(_heads(sites)), layout_of(sites))

    def compared(self, edited: Collection[Site]) -> tuple[Head, ...]:
        """The heads over which the attention metrics of edits at some sites average."""
        own: set[Head] = set()
        for site in edited:
            if site.kind in ATTENTION_KINDS and site.head is not None:
                read = self.layout[site.layer].reading(site.head, site.kind)
                own |= {(site.layer, head) for head in read} & self.every
        first = min((site.layer for site in edited), default=0)
        return tuple(sorted(own or {h for h in self.every if h[0] >= first} or self.every))


def _heads(sites: Iterable[Site]) -> set[Head]:
    return {(s.layer, s.head) for s in sites if s.kind == "pattern" and s.head is not None}
