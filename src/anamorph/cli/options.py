"""The options that several verbs share."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from anamorph.auditing.local import Engine
from anamorph.cli.console import stderr
from anamorph.errors import AnamorphError, require
from anamorph.report import check_figures
from anamorph.studies.plugins import plugged

TaskName = Annotated[str, typer.Argument(help="The task, such as dyck.", show_default=False)]
Preset = Annotated[
    str, typer.Option(help="Where the specification starts from: smoke, demo, paper.")
]
Seeds = Annotated[
    int | None,
    typer.Option(
        help="Train this many models, with seeds 0, 1, …", show_default="as many as the preset"
    ),
]
Out = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER",
        help="The run folder, also as s3://bucket/run.",
        show_default="runs/TASK-PRESET",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change the specification: section.key=value; repeatable."),
]
Workers = Annotated[
    int | None,
    typer.Option(help="Seeds worked on at a time.", show_default="what the processors allow"),
]
TrainFolder = Annotated[
    Path | None,
    typer.Option("--train", help="A folder to train on, for tasks with task.corpus."),
]
UnseenFolder = Annotated[
    Path | None,
    typer.Option("--unseen", help="A folder like it, not to be trained on."),
]
OodFolders = Annotated[
    list[str] | None,
    typer.Option("--ood", help="NAME=FOLDER for another split, such as a language; repeatable."),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Where models compute: cpu, cuda, cuda:1, mps; auto: a CUDA device if there is one.",
        show_default="auto",
    ),
]
Products = Annotated[
    str | None,
    typer.Option(
        "--matmul",
        help="Products of float32 matrices: highest, or high (TF32: faster, less exact).",
        show_default="highest",
    ),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print a summary as JSON in the end; progress goes to stderr."),
]
Figures = Annotated[
    list[str] | None,
    typer.Option(
        help="Write only this figure into figures/, such as verdicts or 'gap*'; repeatable. The "
        "page has all charts in any case.",
        metavar="NAME",
        show_default="all",
    ),
]
NoFigures = Annotated[bool, typer.Option("--no-figures", help="Write no figures beside the page.")]


EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        help="Who does the work: local, this process; ray, a Ray cluster, or as many processes of "
        "this machine as it has processors.",
        metavar="local|ray",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="With --engine ray: of a cluster, such as auto, or 10.0.0.1:6379.",
        show_default="RAY_ADDRESS, or this machine alone",
    ),
]


def _plug(context: typer.Context, paths: list[Path] | None) -> list[Path] | None:
    """Load the plugins that are named, for as long as the verb runs, and say so."""
    found = context.with_resource(plugged(paths or ()))
    for path, parts in zip(paths or (), found, strict=True):
        stderr().print(f"Plugin {path} was run, and adds: {', '.join(parts)}.", soft_wrap=True)
    return paths


Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        callback=_plug,
        help="A Python file with parts of your own, which is executed (am.register); repeatable.",
    ),
]
RunFolder = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run folder, also as s3://bucket/run.", show_default=False
    ),
]


def with_folders(
    settings: Sequence[str] | None,
    train: Path | None,
    unseen: Path | None,
    ood: Sequence[str] | None,
) -> list[str]:
    """The settings, and among them the folders with source code, if any are given.

    Raises:
        AnamorphError: if they do not fit together.
    """
    settings = list(settings or ())
    if train is None:
        if unseen is not None or ood:
            raise AnamorphError("--unseen and --ood need a folder to train on: give --train.")
        return settings
    if any(setting.partition("=")[0].strip() == "task.corpus" for setting in settings):
        raise AnamorphError("--train stands for a corpus; give it or --set task.corpus, not both.")
    folders = {"train": train} | ({"unseen": unseen} if unseen else {})
    folders = {name: folder.expanduser().absolute() for name, folder in folders.items()}
    for given in ood or ():
        language, _, folder = given.partition("=")
        if not (language and folder):
            raise AnamorphError(f"--ood must be LANGUAGE=FOLDER, as python=src/py; got {given!r}.")
        if language in folders:
            raise AnamorphError(
                f"--ood has {language} twice ({folders[language]}, {folder}); give one folder that "
                "holds the repositories of both."
            )
        folders[language] = Path(folder).expanduser().absolute()
    # Absolute, as the run may be gone on with, or audited again, from elsewhere.
    table = ", ".join(f"{json.dumps(k)} = {json.dumps(str(path))}" for k, path in folders.items())
    return [*settings, f"task.corpus={{{table}}}"]


def with_device(
    settings: Sequence[str] | None, device: str | None, matmul: str | None
) -> list[str]:
    """The settings, and among them where and how exactly to compute, if that is given."""
    given = {"device": device, "matmul": matmul}
    asked = [f"{name}={json.dumps(value)}" for name, value in given.items() if value is not None]
    return [*(settings or ()), *asked]


def chosen_engine(name: str, address: str | None) -> Engine | None:
    """Who does the work; None stands for this process.

    Raises:
        AnamorphError: if there is no such engine, it cannot be had, or it has no address.
    """
    require("--engine", name, among=("local", "ray"))
    if name == "ray":
        from anamorph.auditing.ray import RayEngine  # it loads torch, which help need not

        return RayEngine(address)
    if address is not None:
        raise AnamorphError(f"--address {address} is of a Ray cluster: add --engine ray.")
    return None


def chosen_figures(figures: Sequence[str] | None, none: bool) -> list[str] | None:
    """The names of the figures to write; None stands for all.

    Raises:
        AnamorphError: if there are no such figures, or names are given and none are wanted.
    """
    if none and figures:
        raise AnamorphError(
            f"--no-figures writes none, --figures {' '.join(figures)} some; give one of them."
        )
    chosen = [] if none else list(figures) if figures else None
    check_figures(chosen)
    return chosen


def default_out(task: str, preset: str) -> Path:
    """The run folder where none is given."""
    return Path("runs") / f"{task}-{preset}"
