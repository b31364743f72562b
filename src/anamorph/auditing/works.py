"""Works: the fixed groups of cells that are computed, stored and resumed whole.

How the sums of a cell round depends on what they are computed beside. What is computed together
therefore follows from the specification alone, and is done whole or not at all: so a run that was
killed and resumed equals one that was not, to the byte.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf
from operator import itemgetter
from typing import Any

from anamorph.auditing.another import load
from anamorph.auditing.changed import ChangedProxy
from anamorph.auditing.engine import Settings, Told, audit_split
from anamorph.auditing.proxies import Heads, ModelProxy, Proxy, SimplifiedProxy
from anamorph.auditing.samples import scored_sequences, scored_task
from anamorph.errors import AnamorphError
from anamorph.faithfulness.measuring import CellKey
from anamorph.faithfulness.sums import CellSums
from anamorph.models.base import Model
from anamorph.models.fingerprint import differing
from anamorph.simplifications import (
    AnotherModel,
    FittedProxies,
    Placement,
    ProxySpec,
    Simplified,
    changes_weights,
    first_layer,
    placements,
    sites_of,
)
from anamorph.tasks import Task

PROXIES = 64  # in a work, at most: the model itself runs once for all of them
CHANGED = 8  # in a work, at most, of those that change weights,
WEIGHTS = 2**31  # and bytes of their matrices, unless one alone has more


@dataclass(frozen=True)
class Work:
    """Cells that are computed together, as plain data.

    Attributes:
        split: the name of their split.
        number: which of the split's works it is.
        proxies: the spec strings of their proxies, in the order in which their sums are stored.
    """

    split: str
    number: int
    proxies: tuple[str, ...]


def plan(proxies: Sequence[ProxySpec], model: Model, splits: Sequence[str]) -> list[Work]:
    """Which cells are computed together, and in which order; nothing but these arguments decides.

    Args:
        proxies: all of a specification.
        model: whose sites they stand at; its weights do not matter.
        splits: the names of those that are audited.

    Returns:
        every proxy once on every split. Simplifications that can run in one stack stand together:
        they are ordered by the first layer that they read or edit and the heads they are compared
        on, then as they were given. Proxies that change weights stand together while their
        matrices take little memory. Every other model is a work of its own.
    """
    in_stacks = [p for p in proxies if isinstance(p, Simplified) and not changes_weights(p)]
    heads, layers = Heads.of(model.sites), model.layers

    def place(placement: Placement) -> tuple[Any, ...]:
        edited = {s: a.simplification for a, some in placement for s in some}
        return first_layer(edited, layers), heads.compared(edited)

    places = map(place, placements(in_stacks, model.sites))
    by_place = sorted(zip(places, in_stacks, strict=True), key=itemgetter(0))
    ordered = [proxy for _, proxy in by_place]
    size = ceil(len(ordered) / max(1, ceil(len(ordered) / PROXIES)))
    inside = [ordered[i : i + size] for i in range(0, len(ordered), max(1, size))]
    alone = {*proxies} - {*in_stacks}
    others = _held_together([p for p in proxies if p in alone], model)

    texts = [tuple(str(proxy) for proxy in some) for some in inside + others]
    named, beside = list(enumerate(texts)), len(inside)
    of_model = [Work(split, n, some) for split in splits for n, some in named[:beside]]
    return of_model + [Work(split, n, some) for n, some in named[beside:] for split in splits]


def _held_together(proxies: Iterable[ProxySpec], model: Model) -> list[list[ProxySpec]]:
    """Those with weights of their own, in order, by how many are held in memory at a time."""
    groups: list[list[ProxySpec]] = []
    held = inf
    for proxy in proxies:
        size: float = matrices_of(proxy, model) if isinstance(proxy, Simplified) else inf
        held += size
        if held > WEIGHTS or len(groups[-1]) == CHANGED:
            groups.append([])
            held = size
        groups[-1].append(proxy)
    return groups


def matrices_of(proxy: ProxySpec, model: Model) -> int:
    """Bytes of the matrices that a proxy changes and holds itself; 0 of other kinds."""
    if not isinstance(proxy, Simplified) or not changes_weights(proxy):
        return 0
    sites = [site for _, some in sites_of(proxy, model.sites) for site in some]
    return sum({m.module: m.bytes for s in sites for m in model.matrices(s)}.values())


class Auditor:
    """Whoever executes works: it holds what all of them need.

    Args:
        model: the original, in inference mode.
        task: its data.
        proxies: all of the specification; what they are fitted on by `on=` is not scored.
        fitted: what was fitted of them.
        sequences: scored sequences of each split, at most; None for all.
        settings: how sums are computed; the defaults if it is None.
    """

    def __init__(
        self,
        model: Model,
        task: Task,
        proxies: Sequence[ProxySpec],
        fitted: FittedProxies,
        sequences: int | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.model, self.task, self.fitted = model, scored_task(task, proxies), fitted
        self.sequences, self.settings = sequences, settings or Settings()
        self.specs = {str(spec): spec for spec in proxies}
        self._held: dict[str, Proxy] = {}  # with weights of their own, for the next work

    def execute(self, work: Work, watch: Told = lambda done, total: None) -> dict[str, CellSums]:
        """The sums of a work, by spec string, in the work's order.

        Args:
            work: of a plan for the same specification.
            watch: called with what is done and the total; see `audit_split`.

        Raises:
            AnamorphError: as `audit_split`; if another model cannot be loaded.
        """
        part = scored_sequences(self.task.splits[work.split], self.sequences)
        proxies = self.proxies(work.proxies)
        cells = audit_split(self.model, part, self.task.candidates, proxies, self.settings, watch)
        return {str(spec): sums for spec, sums in cells.items()}

    def require_same(self, work: Work, known: Mapping[str, Mapping[str, str]]) -> None:
        """Refuse another model that is not what it was when the audit began.

        Args:
            work: that was executed.
            known: fingerprints of other models, by spec string.

        Raises:
            AnamorphError: names what differs.
        """
        for text in known.keys() & set(work.proxies):
            other = self._held[text]
            assert isinstance(other, ModelProxy)
            before, now = known[text], other.other.fingerprint()
            parts = [part for part in {**before, **now} if before.get(part) != now.get(part)]
            if parts:
                raise AnamorphError(
                    f"{text} was changed while it was compared ({differing(parts)}). What was "
                    "being computed is not kept. Put the old one back, and the same command goes "
                    "on; or begin a new run."
                )

    def proxies(self, texts: Sequence[str]) -> list[Proxy]:
        """The proxies of some spec strings; others with weights of their own are let go.

        Raises:
            AnamorphError: as `proxy`.
        """
        self._held = {text: p for text, p in self._held.items() if text in texts}
        return [self.proxy(text) for text in texts]

    def proxy(self, text: str) -> Proxy:
        """The proxy of a spec string, ready to run.

        Raises:
            AnamorphError: if it is another model, and cannot be loaded.
        """
        spec = self.specs[text]
        if isinstance(spec, Simplified) and not changes_weights(spec):
            return SimplifiedProxy(self.fitted[spec], self.model)
        if text not in self._held:
            self._held[text] = self._with_weights(spec)
        return self._held[text]

    def _with_weights(self, spec: ProxySpec) -> Proxy:
        if isinstance(spec, Simplified):
            return ChangedProxy(self.fitted[spec], self.model)
        assert isinstance(spec, AnotherModel)
        return ModelProxy(spec, load(spec, self.model).model, self.model)


def merge(
    parts: Iterable[tuple[Work, Mapping[str, CellSums]]], seed: int = 0
) -> dict[CellKey, CellSums]:
    """The cells of one model from the sums of its works, executed in any order.

    Raises:
        AnamorphError: if a cell is in two works.
    """
    cells: dict[CellKey, CellSums] = {}
    for work, sums in parts:
        for text in work.proxies:
            key = seed, text, work.split
            if key in cells:
                raise AnamorphError(
                    f"{text} on split {work.split!r} is in two works; give every work once."
                )
            cells[key] = sums[text]
    return cells
