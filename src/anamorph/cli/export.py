"""`anamorph export RUN FOLDER`: what a run has trained, for other packages."""

from pathlib import Path
from typing import Annotated

import typer

from anamorph.cli.console import stdout
from anamorph.cli.options import RunFolder
from anamorph.runs.folder import load_run
from anamorph.simplifications import FittedProxies


def export(
    run: RunFolder,
    folder: Annotated[Path, typer.Argument(help="Where to write.", show_default=False)],
) -> None:
    """Write the autoencoders and transcoders of a run for SAELens and sparsify."""
    found = load_run(run)
    name = str(found.spec["model"].get("name", found.path.resolve().name))
    for seed in found.seeds:
        fitted = FittedProxies.load(found.seed(seed) / "simplifications.safetensors")
        for path in fitted.export(folder / f"seed-{seed}", name):
            stdout().print(str(path), soft_wrap=True, highlight=False, markup=False)
