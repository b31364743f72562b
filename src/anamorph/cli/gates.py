"""Gates of `run`, `audit` and `compare`: exit code 1 after everything is written."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import typer
from rich.console import Console

from anamorph.analysis.gates import VERDICTS, Gates, failing
from anamorph.runs.folder import Run, load_run

PANEL = "Gates: end with exit code 1"
MOST_NAMED = 10  # cells that fail

FailBelow = Annotated[
    float | None,
    typer.Option(
        help="If a view's share of same predictions on any split is lower than on the reference, "
        "by more than this, such as 0.02.",
        rich_help_panel=PANEL,
    ),
]
FailUnder = Annotated[
    float | None,
    typer.Option(
        help="If a view's share of same predictions on any split is under this, such as 0.98.",
        rich_help_panel=PANEL,
    ),
]
FailOn = Annotated[
    list[str] | None,
    typer.Option(
        help=f"If a view has this verdict on any split: {', '.join(VERDICTS)}; repeatable.",
        rich_help_panel=PANEL,
    ),
]


def asked(below: float | None, under: float | None, on: Sequence[str] | None) -> Gates:
    """The gates of a run; called before it, so that none waits for a word that does not exist."""
    return Gates.of_run(below, under, on or ())


def hold(gates: Gates, runs: Mapping[str, Run]) -> None:
    """End with exit code 1 if a cell of a run fails.

    Args:
        gates: from `asked`.
        runs: by what to call them in front of a cell; "" for a single one.
    """
    if gates.given:
        cells = []
        for name, run in runs.items():
            found = failing(load_run(run.path), gates)
            cells += [f"{name}: {cell}" if name else cell for cell in found]
        end(cells)


def end(cells: Sequence[str]) -> None:
    """Name the cells that fail on standard error, and end with exit code 1; or say that none does.

    Raises:
        typer.Exit: if there are any.
    """
    console = Console(stderr=True, highlight=False, markup=False)

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    if not cells:
        say("Gates: no cell fails.")
        return
    say(f"Gates: {len(cells)} cell{'s fail' if len(cells) > 1 else ' fails'}.")
    for cell in cells[:MOST_NAMED]:
        say(f"  {cell}")
    if len(cells) > MOST_NAMED:
        say(f"  and {len(cells) - MOST_NAMED} more")
    raise typer.Exit(1)
