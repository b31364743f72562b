"""`anamorph run TASK`, or of a file: the whole job."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from anamorph.cli import gates, options
from anamorph.cli.audited import audit_into
from anamorph.cli.console import stderr
from anamorph.cli.dry_run import DryRun, On, require_dry_run, tell
from anamorph.cli.pairs import pairs_into
from anamorph.cli.progress import shown
from anamorph.cli.vary import Vary, as_settings, say_which, vary_into
from anamorph.errors import AnamorphError
from anamorph.runs.folder import Run, load_run
from anamorph.store import Address, address_of
from anamorph.studies.changes import read_vary
from anamorph.studies.pairs import PairsSpec, is_pairs, load_pairs
from anamorph.studies.sources import GivenStudy, TrainedStudy
from anamorph.studies.spec_files import StudyFile, is_file, read_study
from anamorph.studies.specification import GivenSpec, StudySpec, load_preset
from anamorph.studies.study import audit_files, run_study
from anamorph.studies.varied import combinations

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
    vary: Vary = None,
    workers: options.Workers = None,
    engine: options.EngineName = "local",
    address: options.Address = None,
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
    read = partial(_read, task, preset, changes, seeds, simplify or ())
    found = read()
    varied = {**found.vary, **read_vary(vary or ())}
    each = {name: read(values) for name, values in combinations(varied).items()}
    folder = address_of(out or found.out or _default_out(task, preset, varied))
    if dry_run:
        for name, one in each.items():
            say_which(name)
            _tell(one, folder / name, workers, on, as_json)
        return
    how: dict[str, Any] = {"preset": found.preset, "workers": workers, "figures": names}
    how["engine"] = options.chosen_engine(engine, address)
    gates.hold(asked, _do(varied, each, folder, how, as_json))


def _do(
    varied: Mapping[str, Sequence[Any]],
    each: Mapping[str, StudyFile],
    folder: Address,
    how: dict[str, Any],
    as_json: bool,
) -> dict[str, Run]:
    """One study or several; the runs, by what to call them."""
    if varied:
        specs = {name: one.spec for name, one in each.items()}
        return vary_into(folder, varied, specs, how, as_json)
    (one,) = each.values()
    return _one(one.spec, folder, how, as_json)


def _one(
    spec: StudySpec | GivenSpec | PairsSpec, folder: Address, how: dict[str, Any], as_json: bool
) -> dict[str, Run]:
    """A study in which nothing is varied; its runs, by what to call them."""
    match spec:
        case PairsSpec():
            return pairs_into(folder, spec, as_json, how["figures"], how["engine"])
        case GivenSpec():
            few = {name: how[name] for name in ("figures", "engine")}
            audit_into(folder, partial(audit_files, spec, folder, **few), as_json)
        case StudySpec():
            audit_into(folder, partial(run_study, spec, folder, **how), as_json)
    return {"": load_run(folder)}


def _read(
    task: str,
    preset: str | None,
    changes: list[str],
    seeds: int | None,
    simplify: Sequence[str],
    values: Mapping[str, Any] = MappingProxyType({}),
) -> StudyFile:
    """What is to be done, with the values of what is varied."""
    changes = [*changes, *as_settings(values)]
    if is_file(task):
        if preset is not None:
            raise AnamorphError(
                f"{task} says where it starts from, such as preset = 'dyck-smoke'; leave --preset "
                "out."
            )
        return read_study(address_of(task), changes, seeds, simplify)
    preset = preset or PRESET
    load = load_pairs if is_pairs(task, preset) else load_preset
    return StudyFile(load(task, preset, changes, seeds, simplify), None, preset)


def _tell(
    found: StudyFile, folder: Address, workers: int | None, on: int | None, as_json: bool
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


def _default_out(task: str, preset: str | None, varied: Iterable[str]) -> Path:
    """The run folder where none is given, or the folder of studies that differ in some settings."""
    if not is_file(task):
        folder = options.default_out(task, preset or PRESET)
        by = [setting.rpartition(".")[2] for setting in varied]
        return folder.with_name("-".join([folder.name, *(["by", *by] if by else [])]))
    if Path(task).suffix.lower() == ".json":
        raise AnamorphError(f"Give --out, a new run folder for what {task} says, done again.")
    return Path("runs") / Path(task).stem
