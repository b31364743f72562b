"""Tasks: data with named splits, and the positions at which predictions are scored.

To add one, write a file with a function that takes keyword arguments and gives a `Task`, and name
it in `TASKS` (or in the entry-point group `anamorph.tasks` of a package of your own).
"""

import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from anamorph.errors import AnamorphError
from anamorph.tasks.base import NOT_APPLICABLE, Facet, Role, Split, Task
from anamorph.tasks.dyck import dyck

TASKS: dict[str, Callable[..., Task]] = {"dyck": dyck}

__all__ = ["NOT_APPLICABLE", "TASKS", "Facet", "Role", "Split", "Task", "load_task", "task_names"]


def task_names() -> list[str]:
    """All tasks: our own and those of other packages."""
    return sorted({*TASKS, *(e.name for e in entry_points(group="anamorph.tasks"))})


def load_task(name: str, **arguments: Any) -> Task:
    """Make a task by its name.

    Raises:
        AnamorphError: if there is no such task, or it takes no such argument.
    """
    make = TASKS.get(name)
    if make is None:
        found = [e for e in entry_points(group="anamorph.tasks") if e.name == name]
        if not found:
            raise AnamorphError(f"There is no task {name!r}; there are: {', '.join(task_names())}.")
        make = found[0].load()
    known = inspect.signature(make).parameters
    unknown = [key for key in arguments if key not in known]
    if unknown:
        raise AnamorphError(
            f"The task {name!r} takes no {', '.join(unknown)}; it takes: {', '.join(known)}."
        )
    return make(**arguments)
