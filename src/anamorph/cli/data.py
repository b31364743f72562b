"""`anamorph data TASK`: a task's splits as Parquet files."""

from pathlib import Path
from typing import Annotated

import typer

from anamorph.cli import options
from anamorph.cli.console import stdout
from anamorph.cli.progress import shown
from anamorph.cli.tables import print_splits
from anamorph.studies.specification import load_preset
from anamorph.tasks import load_task
from anamorph.tasks.export import export


def data(
    task: options.TaskName,
    out: Annotated[Path, typer.Option(help="A folder for the files.")],
    preset: options.Preset = "demo",
    settings: options.Settings = None,
    train: options.TrainFolder = None,
    unseen: options.UnseenFolder = None,
    ood: options.OodFolders = None,
    plugins: options.Plugins = None,
) -> None:
    """Write one Parquet file a split, and task.json."""
    console = stdout()
    spec = load_preset(task, preset, options.with_folders(settings, train, unseen, ood))
    with shown(console) as watch:
        made = load_task(watch=watch, **spec.task)
    export(made, out)
    print_splits(made, console)
    console.print(f"Data: {out}", soft_wrap=True)
