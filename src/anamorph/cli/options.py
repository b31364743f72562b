"""The options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

TaskName = Annotated[str, typer.Argument(help="The task, such as dyck.", show_default=False)]
Preset = Annotated[
    str, typer.Option(help="Where the specification starts from: smoke, demo, paper.")
]
Seeds = Annotated[
    int | None, typer.Option(help="Train this many models, with seeds 0, 1, … [default: preset's]")
]
Out = Annotated[Path | None, typer.Option(help="The run folder. [default: runs/TASK-PRESET]")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change the specification: section.key=value; repeatable."),
]
Workers = Annotated[
    int | None,
    typer.Option(help="Seeds worked on at a time. [default: what the processors allow]"),
]
RunFolder = Annotated[Path, typer.Argument(help="A run folder.", show_default=False)]


def default_out(task: str, preset: str) -> Path:
    """The run folder where none is given."""
    return Path("runs") / f"{task}-{preset}"
