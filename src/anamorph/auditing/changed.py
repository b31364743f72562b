"""Proxies whose weights are changed: the model runs with other matrices in place of its own."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Self

from anamorph.auditing.model_run import ModelRun, Outcome, patterns_of
from anamorph.auditing.proxies import Proxy, attention_heads, widest
from anamorph.auditing.stacks import stacked_edits
from anamorph.models.base import Edits, Model, Recorded
from anamorph.models.changing import Changed
from anamorph.simplifications import FittedProxy, changed_matrices, changes_weights


class ChangedProxy(Proxy):
    """The model with other weights. It starts from the model's own states.

    It holds the new matrices, and shares all else with the model. Attention is compared as for
    simplifications at the same sites.

    Args:
        fitted: what is put in place.
        model: where.

    Raises:
        AnamorphError: if its matrices cannot be changed.
    """

    def __init__(self, fitted: FittedProxy, model: Model) -> None:
        heads = attention_heads(fitted.by_site, model.sites)
        super().__init__(fitted.proxy, fitted.first_layer, heads)
        self.stack = (fitted.first_layer, heads, str(fitted.proxy))
        self.changed = Changed(changed_matrices(model, fitted.by_site))

    def session(self) -> AbstractContextManager[None]:
        """Prepare the modules that hold the matrices."""
        return self.changed.session()

    def bytes(self, run: ModelRun) -> int:
        """See `Proxy.bytes`."""
        return widest(self, run)

    def run(self, run: ModelRun, stack: Sequence[Self]) -> Outcome:
        """Everything from the first changed layer on.

        Raises:
            AnamorphError: if a matrix is not used exactly once.
        """
        first, record, at = self.first_layer, patterns_of(self.heads), run.scored.targets.at
        patterns = Recorded({s: run.outcome.patterns[s] for s in record if s.layer < first})
        with self.changed.running():
            state, found = run.model.run(run.states[first], None, record, at, first)
        return Outcome(run.model, state, patterns | found)


@contextmanager
def in_place(model: Model, fitted: FittedProxy | None) -> Iterator[Edits]:
    """What makes one run of a model into a proxy: its edits, or other weights meanwhile.

    Args:
        model: that is run, once, and whole.
        fitted: the proxy; None for the model itself.
    """
    if fitted is None:
        yield {}
    elif changes_weights(fitted.proxy):
        changed = Changed(changed_matrices(model, fitted.by_site))
        with changed.session(), changed.running():
            yield {}
    else:
        yield stacked_edits([fitted])
