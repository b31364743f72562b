"""`anamorph list`: what there is to work with."""

from anamorph.cli.console import stdout
from anamorph.simplifications import simplification_names
from anamorph.specification import presets
from anamorph.tasks import task_names


def list_() -> None:
    """List tasks with their presets, and simplifications."""
    console = stdout()
    for task in task_names():
        named = presets(task)
        said = (
            f"presets: {', '.join(named)}" if named else "no presets: for `anamorph audit --data`"
        )
        console.print(f"task            {task} ({said})")
    for name in simplification_names():
        console.print(f"simplification  {name}")
