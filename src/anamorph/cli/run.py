"""`anamorph run TASK`: the whole job."""

from functools import partial

from anamorph.cli.console import audit_into
from anamorph.cli.options import (
    OodFolders,
    Out,
    Preset,
    Seeds,
    Settings,
    TaskName,
    TrainFolder,
    UnseenFolder,
    Workers,
    default_out,
    with_folders,
)
from anamorph.studies.specification import load_preset
from anamorph.studies.study import run_study


def run(
    task: TaskName,
    preset: Preset = "demo",
    seeds: Seeds = None,
    out: Out = None,
    settings: Settings = None,
    workers: Workers = None,
    train: TrainFolder = None,
    unseen: UnseenFolder = None,
    ood: OodFolders = None,
) -> None:
    """Train, simplify, audit and report; the same command goes on with a stopped run."""
    folder = out or default_out(task, preset)
    spec = load_preset(task, preset, with_folders(settings, train, unseen, ood), seeds)
    audit_into(folder, partial(run_study, spec, folder, preset=preset, workers=workers))
