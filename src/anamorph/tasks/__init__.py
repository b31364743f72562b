"""Tasks: data with named splits, and the positions at which predictions are scored.

To add one, write a file with a function that takes keyword arguments and gives a `Task`, and name
it in `BUILT_IN`, or in the entry-point group `anamorph.tasks` of a package of your own, or register
it (`anamorph.register`). A task that is made of folders takes them as `corpus`, by name: then
`--train`, `--unseen` and `--ood` of the command line give them.
"""

import inspect
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from anamorph.errors import AnamorphError
from anamorph.progress import Watch
from anamorph.progress.watching import watching
from anamorph.registered import Registered, registered
from anamorph.tasks.about import About
from anamorph.tasks.base import NOT_APPLICABLE, Facet, Role, Split, Task
from anamorph.tasks.checks import check_context, check_vocabulary
from anamorph.tasks.own_facets import OwnFacet, with_own_facets

GROUP = "anamorph.tasks"
BUILT_IN = {  # imported when they are asked for
    "code": "anamorph.tasks.code.task:code",
    "dyck": "anamorph.tasks.dyck.task:dyck",
    "text": "anamorph.tasks.text.task:text_task",
}
FOUND = ("files", "fit", "made", "read", "splits")  # in a task's spec: what its data turned out as

__all__ = [
    "BUILT_IN",
    "NOT_APPLICABLE",
    "About",
    "Facet",
    "OwnFacet",
    "Role",
    "Split",
    "Task",
    "check_context",
    "check_vocabulary",
    "load_task",
    "task_names",
]


def task_names() -> list[str]:
    """All tasks: our own, those of other packages, and those registered."""
    return sorted(_entries())


def load_task(name: str, *, watch: Watch | None = None, **arguments: Any) -> Task:
    """Make a task by its name.

    `load_task(**task.spec)` makes a task again; what its spec says of the data must still be so.

    Args:
        name: `dyck`, `code`, `text`, or that of a task in an installed package.
        watch: told of progress by tasks that download or read much; by default bars in a notebook.
        arguments: of the task, such as those of `anamorph.tasks.dyck.task.dyck`.

    Raises:
        AnamorphError: if there is no such task, it takes no such argument, or the data have
            changed.
    """
    entries = _entries()
    if name not in entries:
        raise AnamorphError(f"There is no task {name!r}; there are: {', '.join(task_names())}.")
    make = entries[name].load()
    known = inspect.signature(make).parameters
    said = {key: arguments.pop(key) for key in FOUND if key in arguments and key not in known}
    unknown = [key for key in arguments if key not in known or key == "watch"]
    if unknown:
        raise AnamorphError(
            f"The task {name!r} takes no {', '.join(unknown)}; it takes: "
            f"{', '.join(key for key in known if key != 'watch')}."
        )
    with watching(watch) as told:
        task: Task = make(**arguments, **({"watch": told} if "watch" in known else {}))
    task = with_own_facets(task)
    for key, value in said.items():
        if task.spec.get(key) != value:
            raise AnamorphError(
                f"The data of the task {name!r} are not what they were: {key!r} was said to be "
                f"{value!r} and is {task.spec.get(key)!r}. Bring the old data back, or leave "
                f"{', '.join(said)} out."
            )
    return task


def _entries() -> Mapping[str, EntryPoint | Registered]:
    """Every task by its name, not yet imported; one of ours is never replaced by another's."""
    ours = {name: EntryPoint(name, value, GROUP) for name, value in BUILT_IN.items()}
    offered = (*entry_points(group=GROUP), *registered(GROUP))
    return {entry.name: entry for entry in offered} | ours
