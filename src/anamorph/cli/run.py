"""`anamorph run TASK`: the whole job."""

from functools import partial
from typing import Any

from anamorph.cli import gates, options
from anamorph.cli.console import audit_into
from anamorph.cli.pairs import pairs_into
from anamorph.runs.folder import load_run
from anamorph.studies.pairs import is_pairs, load_pairs
from anamorph.studies.specification import load_preset
from anamorph.studies.study import run_study


def run(
    task: options.TaskName,
    preset: options.Preset = "demo",
    seeds: options.Seeds = None,
    out: options.Out = None,
    settings: options.Settings = None,
    workers: options.Workers = None,
    train: options.TrainFolder = None,
    unseen: options.UnseenFolder = None,
    ood: options.OodFolders = None,
    device: options.Device = None,
    matmul: options.Products = None,
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
    asked = gates.asked(fail_below, fail_under, fail_on)
    names = options.chosen_figures(figures, no_figures)
    folder = out or options.default_out(task, preset)
    changes = options.with_folders(settings, train, unseen, ood)
    changes = options.with_device(changes, device, matmul)
    if is_pairs(task, preset):
        pairs = load_pairs(task, preset, changes, seeds)
        gates.hold(asked, pairs_into(folder, pairs, as_json, names))
        return
    spec = load_preset(task, preset, changes, seeds)
    how: dict[str, Any] = {"preset": preset, "workers": workers, "figures": names}
    audit_into(folder, partial(run_study, spec, folder, **how), as_json)
    gates.hold(asked, {"": load_run(folder)})
