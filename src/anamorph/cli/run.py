"""`anamorph run TASK`, or of a file: the whole job."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from anamorph.cli import gates, options
from anamorph.cli.console import audit_into, stderr
from anamorph.cli.dry_run import DryRun, On, require_dry_run, tell
from anamorph.cli.pairs import pairs_into
from anamorph.cli.progress import shown
from anamorph.errors import AnamorphError
from anamorph.runs.folder import load_run
from anamorph.studies.pairs import PairsSpec, is_pairs, load_pairs
from anamorph.studies.sources import GivenStudy, TrainedStudy
from anamorph.studies.spec_files import StudyFile, is_file, read_study
from anamorph.studies.specification import GivenSpec, load_preset
from anamorph.studies.study import audit_files, run_study

PRESET = "demo"


def run(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK|FILE",
            help="A task such as dyck; or a study as a TOML file, or the spec.json of a run: the "
            "same again.",
            show_default=False,
        ),
    ],
    preset: Annotated[
        str | None,
        typer.Option(
            help="Where the specification starts from: smoke, demo, paper.", show_default=PRESET
        ),
    ] = None,
    seeds: options.Seeds = None,
    out: options.Out = None,
    simplify: Annotated[
        list[str] | None,
        typer.Option(help="A spec in place of all simplifications that there are; repeatable."),
    ] = None,
    settings: options.Settings = None,
    workers: options.Workers = None,
    train: options.TrainFolder = None,
    unseen: options.UnseenFolder = None,
    ood: options.OodFolders = None,
    device: options.Device = None,
    matmul: options.Products = None,
    plugins: options.Plugins = None,
    dry_run: DryRun = False,
    on: On = None,
    as_json: options.AsJson = False,
    figures: options.Figures = None,
    no_figures: options.NoFigures = False,
    fail_below: gates.FailBelow = None,
    fail_under: gates.FailUnder = None,
    fail_on: gates.FailOn = None,
) -> None:
    """Train, simplify, audit and report; the same command goes on with a stopped run.

    Of pairs of texts, such as texts, the model is fetched instead, and every pair is audited.
    """
    require_dry_run(dry_run, on)
    asked = gates.asked(fail_below, fail_under, fail_on)
    names = options.chosen_figures(figures, no_figures)
    changes = options.with_folders(settings, train, unseen, ood)
    changes = options.with_device(changes, device, matmul)
    found = _read(task, preset, changes, seeds, simplify or ())
    folder = out or found.out or _default_out(task, preset)
    if dry_run:
        _tell(found, folder, workers, on, as_json)
        return
    match found.spec:
        case PairsSpec():
            gates.hold(asked, pairs_into(folder, found.spec, as_json, names))
            return
        case GivenSpec():
            work = partial(audit_files, found.spec, folder, figures=names)
        case _:
            how: dict[str, Any] = {"preset": found.preset, "workers": workers, "figures": names}
            work = partial(run_study, found.spec, folder, **how)
    audit_into(folder, work, as_json)
    gates.hold(asked, {"": load_run(folder)})


def _read(
    task: str,
    preset: str | None,
    changes: list[str],
    seeds: int | None,
    simplify: Sequence[str],
) -> StudyFile:
    """What is to be done."""
    if is_file(task):
        if preset is not None:
            raise AnamorphError(
                f"{task} says where it starts from, such as preset = 'dyck-smoke'; leave --preset "
                "out."
            )
        return read_study(Path(task), changes, seeds, simplify)
    preset = preset or PRESET
    load = load_pairs if is_pairs(task, preset) else load_preset
    return StudyFile(load(task, preset, changes, seeds, simplify), None, preset)


def _tell(
    found: StudyFile, folder: Path, workers: int | None, on: int | None, as_json: bool
) -> None:
    """What it would take."""
    match found.spec:
        case PairsSpec():
            raise AnamorphError(
                "--dry-run cannot tell of pairs of texts, whose model and texts are fetched as the "
                "study runs; leave it out."
            )
        case GivenSpec():
            tell(GivenStudy.load(found.spec), folder, None, on, as_json)
        case _:
            with shown(stderr()) as watch:  # of data that are fetched or read
                study = TrainedStudy(found.spec, found.preset, watch=watch)
            tell(study, folder, workers, on, as_json)


def _default_out(task: str, preset: str | None) -> Path:
    """The run folder where none is given."""
    if not is_file(task):
        return options.default_out(task, preset or PRESET)
    if Path(task).suffix.lower() == ".json":
        raise AnamorphError(f"Give --out, a new run folder for what {task} says, done again.")
    return Path("runs") / Path(task).stem
