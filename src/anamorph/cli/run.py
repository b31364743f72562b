"""`anamorph run TASK`: the whole job."""

from anamorph.cli.console import stdout
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
from anamorph.cli.outcome import complete, print_outcome
from anamorph.cli.progress import shown
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
    console = stdout()
    folder = out or default_out(task, preset)
    spec = load_preset(task, preset, with_folders(settings, train, unseen, ood), seeds)
    before = complete(folder)
    with shown(console) as watch:
        result = run_study(spec, folder, preset=preset, workers=workers, watch=watch)
    print_outcome(result, console, before=before)
