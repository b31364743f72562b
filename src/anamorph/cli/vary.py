"""`--vary` of `anamorph run` and `anamorph audit`: a study for each value, and one page of all."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from anamorph.cli.along import print_along
from anamorph.cli.console import print_json, progress_console, stdout
from anamorph.cli.progress import shown
from anamorph.errors import AnamorphError
from anamorph.report.opened import load_run
from anamorph.runs.folder import Run
from anamorph.runs.varied import PAGE, TABLE
from anamorph.store import Address
from anamorph.studies.pairs import PairsSpec
from anamorph.studies.varied import Spec, refuse_failed, run_varied

Vary = Annotated[
    list[str] | None,
    typer.Option(
        help="SETTING=VALUE,VALUE,…: a run for each value, and one page along them; repeatable.",
        metavar="SETTING=VALUES",
    ),
]


def as_settings(values: Mapping[str, Any]) -> list[str]:
    """Values as `--set` takes them."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def say_which(name: str) -> None:
    """Print the name of a study over what is told of it; nothing where there is only one."""
    if name:
        stdout().print(name, style="bold", markup=False)


def vary_into(
    folder: Address,
    vary: Mapping[str, Sequence[Any]],
    specs: Mapping[str, Spec | PairsSpec],
    how: Mapping[str, Any],
    as_json: bool = False,
) -> dict[str, Run]:
    """Do all studies, or what is left; print what changes along the axis, and where it all is.

    Args:
        folder: of all.
        vary: the values of each setting.
        specs: by the names of the run folders.
        how: other arguments of `run_varied`.
        as_json: print the summaries of all runs instead, by name.

    Returns:
        the runs, by name.

    Raises:
        AnamorphError: if some failed; the others are finished.
    """
    known = {name: spec for name, spec in specs.items() if not isinstance(spec, PairsSpec)}
    if len(known) < len(specs):
        raise AnamorphError(
            "Pairs of texts are studied one specification at a time: leave --vary out."
        )
    with shown(progress_console(as_json)) as watch:
        studies = run_varied(vary, known, folder, **how, watch=watch)
    if as_json:
        print_json({name: load_run(run.path).summary() for name, run in studies.runs.items()})
    elif studies.found is not None:
        console = stdout()
        print_along(studies.found, console)
        console.print(f"Table: {folder / TABLE}", soft_wrap=True, markup=False)
        console.print(f"Page: {folder / PAGE}", soft_wrap=True, markup=False)
    refuse_failed(studies)
    return studies.runs
