"""Facets of a user's own: labels that are put on the tokens of tasks that are made elsewhere."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anamorph.errors import AnamorphError, told_where
from anamorph.registered import registered
from anamorph.tasks.base import NOT_APPLICABLE, Facet, Split, Task

FACETS = "anamorph.facets"  # under which they are registered


@dataclass(frozen=True)
class OwnFacet:
    """A label on every token, by which the results of any task are broken down.

    Attributes:
        name: of the facet, in results.
        names: of its levels, in the order in which they are shown.
        codes: called with a `Split` and the token names by id (`Task.vocabulary`), gives [tokens]
            whole numbers: the place of a token's level in `names`, or -1 where the facet says
            nothing. All labels stand at the token whose prediction they describe.
        tasks: to which it belongs, by name, such as `("text",)`; all if it is empty.
        label: what a report calls it, if its name does not tell.
    """

    name: str
    names: tuple[str, ...]
    codes: Callable[[Split, tuple[str, ...]], Any]
    tasks: tuple[str, ...] = ()
    label: str = ""

    def of(self, split: Split, vocabulary: tuple[str, ...]) -> Facet:
        """The facet of a split.

        Raises:
            AnamorphError: if the codes do not fit the split or the names.
        """
        with told_where(f"the facet {self.name!r}", f"the split {split.name!r}"):
            found: NDArray[Any] = np.asarray(self.codes(split, vocabulary))
            least, most = NOT_APPLICABLE, len(self.names) - 1
            fits = found.shape == split.tokens.shape and found.dtype.kind in "iu"
            if not fits or (found.size and (found.min() < least or found.max() > most)):
                span = f" from {found.min()} to {found.max()}" if found.size and fits else ""
                raise AnamorphError(
                    f"its codes are {found.dtype} of shape {list(found.shape)}{span}; expected "
                    f"whole numbers from {least} to {most}, one for each of "
                    f"{len(split.tokens)} tokens."
                )
        return Facet(found.astype(np.int16), self.names)


def with_own_facets(task: Task) -> Task:
    """The task with the facets that are registered for it; itself if there are none.

    Raises:
        AnamorphError: if a facet does not fit, or the task has one of its name.
    """
    own = [part.load() for part in registered(FACETS)]
    own = [facet for facet in own if task.name in (facet.tasks or (task.name,))]
    if not own:
        return task
    splits = {name: _labelled(split, own, task.vocabulary) for name, split in task.splits.items()}
    labels: Mapping[str, str] = {facet.name: facet.label for facet in own if facet.label}
    about = replace(task.about, labels={**task.about.labels, **labels})
    return replace(task, splits=splits, about=about)


def _labelled(split: Split, own: list[OwnFacet], vocabulary: tuple[str, ...]) -> Split:
    facets = dict(split.facets)
    for facet in own:
        found = facet.of(split, vocabulary)
        there = facets.setdefault(facet.name, found)
        if there.names != found.names or not np.array_equal(there.codes, found.codes):
            raise AnamorphError(
                f"The split {split.name!r} has another facet {facet.name!r} already; give yours "
                "another name."
            )
    return replace(split, facets=facets)
