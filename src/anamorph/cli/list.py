"""`anamorph list`: what there is to work with."""

from rich.console import Console

from anamorph.simplifications import simplification_names
from anamorph.specification import presets
from anamorph.tasks import task_names


def list_() -> None:
    """List tasks with their presets, and simplifications."""
    console = Console()
    for task in task_names():
        console.print(f"task            {task} (presets: {', '.join(presets(task))})")
    for name in simplification_names():
        console.print(f"simplification  {name}")
