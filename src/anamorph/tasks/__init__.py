"""Tasks: data with named splits, and the positions at which predictions are scored.

To add one, write a file with a function that takes keyword arguments and gives a `Task`, and name
it in `TASKS` (or in the entry-point group `anamorph.tasks` of a package of your own).
"""

import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from anamorph.errors import AnamorphError
from anamorph.progress import Watch, ignore
from anamorph.tasks.base import NOT_APPLICABLE, Facet, Role, Split, Task
from anamorph.tasks.checks import check_context, check_vocabulary
from anamorph.tasks.code.task import code
from anamorph.tasks.dyck.task import dyck
from anamorph.tasks.text.data import parse_data
from anamorph.tasks.text.task import text_task

TASKS: dict[str, Callable[..., Task]] = {"code": code, "dyck": dyck, "text": text_task}
FINDINGS = ("files", "fit", "made", "read", "splits")  # in a task's spec: found, and not given

__all__ = [
    "NOT_APPLICABLE",
    "TASKS",
    "Facet",
    "Role",
    "Split",
    "Task",
    "check_context",
    "check_vocabulary",
    "load_task",
    "parse_data",
    "task_names",
    "text_task",
]


def task_names() -> list[str]:
    """All tasks: our own and those of other packages."""
    return sorted({*TASKS, *(e.name for e in entry_points(group="anamorph.tasks"))})


def load_task(name: str, *, watch: Watch = ignore, **arguments: Any) -> Task:
    """Make a task by its name.

    `watch` is told of progress by tasks that download or read much.

    `load_task(**task.spec)` makes a task again; what its spec says of the data must still be so.

    Raises:
        AnamorphError: if there is no such task, it takes no such argument, or the data have
            changed.
    """
    make = TASKS.get(name)
    if make is None:
        found = [e for e in entry_points(group="anamorph.tasks") if e.name == name]
        if not found:
            raise AnamorphError(f"There is no task {name!r}; there are: {', '.join(task_names())}.")
        make = found[0].load()
    known = inspect.signature(make).parameters
    said = {key: arguments.pop(key) for key in FINDINGS if key in arguments and key not in known}
    unknown = [key for key in arguments if key not in known or key == "watch"]
    if unknown:
        raise AnamorphError(
            f"The task {name!r} takes no {', '.join(unknown)}; it takes: "
            f"{', '.join(key for key in known if key != 'watch')}."
        )
    told = {"watch": watch} if "watch" in known else {}
    task = make(**arguments, **told)
    for key, value in said.items():
        if task.spec.get(key) != value:
            raise AnamorphError(
                f"The data of the task {name!r} are not what they were: {key!r} was said to be "
                f"{value!r} and is {task.spec.get(key)!r}. Bring the old data back, or leave "
                f"{', '.join(said)} out."
            )
    return task
