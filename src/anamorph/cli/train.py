"""`anamorph train TASK`: the models of a study, without the audit."""

from anamorph.cli.console import stdout
from anamorph.cli.options import (
    Device,
    Out,
    Plugins,
    Preset,
    Products,
    Seeds,
    Settings,
    TaskName,
    default_out,
    with_device,
)
from anamorph.cli.progress import shown
from anamorph.cli.tables import print_curves
from anamorph.runs.folder import Run
from anamorph.store import address_of
from anamorph.studies.specification import load_preset
from anamorph.studies.study import train_study


def train(
    task: TaskName,
    preset: Preset = "demo",
    seeds: Seeds = None,
    out: Out = None,
    settings: Settings = None,
    device: Device = None,
    matmul: Products = None,
    plugins: Plugins = None,
) -> None:
    """Train the models of a study; `anamorph run` with the same options goes on from there."""
    console = stdout()
    spec = load_preset(task, preset, with_device(settings, device, matmul), seeds)
    folder = out or default_out(task, preset)
    models = [Run(address_of(folder), {}).model(seed) for seed in spec.seeds]
    before = all(model.exists() for model in models)
    with shown(console) as watch:
        run = train_study(spec, folder, preset=preset, watch=watch)
    print_curves(run, console)
    if before:
        console.print("These models were there already; nothing was done again.")
    console.print(f"Models: {run.path}", soft_wrap=True)
