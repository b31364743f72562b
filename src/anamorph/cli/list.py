"""`anamorph list`: what there is to work with."""

from anamorph.cli.console import stdout
from anamorph.simplifications import simplification_names
from anamorph.specification import presets
from anamorph.tasks import task_names


def list_() -> None:
    """List tasks with their presets, and simplifications."""
    console = stdout()
    for task in task_names():
        console.print(f"task            {task} (presets: {', '.join(presets(task))})")
    for name in simplification_names():
        console.print(f"simplification  {name}")
