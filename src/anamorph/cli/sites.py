"""`anamorph sites MODEL`: what can be read and replaced in a model, or in that of a run."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from anamorph.cli.console import stdout
from anamorph.cli.options import Plugins
from anamorph.errors import AnamorphError
from anamorph.models.base import Model
from anamorph.models.decoder import Decoder
from anamorph.models.huggingface.load import load_model
from anamorph.models.listing import group_sites, list_sites, missing_sites
from anamorph.runs.folder import load_run
from anamorph.store import address_of


def sites(
    model: Annotated[
        str,
        typer.Argument(
            help="A model folder, a GGUF file, with --hub a name, or a run folder.",
            show_default=False,
        ),
    ],
    every: Annotated[bool, typer.Option("--all", help="A row a site.")] = False,
    hub: Annotated[bool, typer.Option("--hub", help="Fetch the model from the hub.")] = False,
    plugins: Plugins = None,
) -> None:
    """List the sites of a model, or of a run's: shape, and how often each fires in one forward."""
    console = stdout()
    loaded = _load(model, hub)
    found = list_sites(loaded)
    name, shown = ("site", found) if every else ("sites", group_sites(found))
    table = Table(title=f"{len(found)} sites of {escape(Path(model).name)}")
    for column in (name, "tensor", "fires"):
        table.add_column(column, overflow="fold")
    for row in shown.iter_rows(named=True):
        fires = {0: "never", 1: "once"}.get(row["fires"], f"{row['fires']} times")
        table.add_row(escape(row[name]), escape(row["shape"] or "not recorded"), fires)
    console.print(table)
    for sentence in missing_sites(loaded):
        console.print(escape(sentence), soft_wrap=True)


def _load(source: str, hub: bool) -> Model:
    if not (address_of(source) / "spec.json").exists():
        return load_model(source, hub=hub, device="cpu")
    run = load_run(source)
    if not run.trained:
        raise AnamorphError(
            f"{source} audits a model that was given ({run.spec['model'].get('name')}), and does "
            "not hold it; give that model itself."
        )
    return Decoder.load(run.model(run.seeds[0])).eval()
