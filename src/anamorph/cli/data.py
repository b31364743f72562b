"""`anamorph data TASK`: a task's splits as Parquet files."""

from pathlib import Path
from typing import Annotated

import typer

from anamorph.cli.console import stdout
from anamorph.cli.options import Preset, Settings, TaskName
from anamorph.cli.tables import print_splits
from anamorph.specification import load_preset
from anamorph.tasks import load_task
from anamorph.tasks.export import export


def data(
    task: TaskName,
    out: Annotated[Path, typer.Option(help="A folder for the files.")],
    preset: Preset = "demo",
    settings: Settings = None,
) -> None:
    """Write one Parquet file a split, and task.json."""
    console = stdout()
    made = load_task(**load_preset(task, preset, settings or ()).task)
    export(made, out)
    print_splits(made, console)
    console.print(f"Data: {out}", soft_wrap=True)
