"""`anamorph run` of pairs of texts: all pairs in one table."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anamorph.analysis.words import split_label
from anamorph.cli.console import stdout
from anamorph.cli.progress import shown
from anamorph.cli.tables import STYLE
from anamorph.report.pairs import LEGEND, NOTE, accuracies, change, matrix, table
from anamorph.runs.folder import Run
from anamorph.studies.pairs import PAGE, TABLE, PairsSpec, run_pairs


def pairs_into(folder: Path, spec: PairsSpec, figures: Sequence[str] | None = None) -> None:
    """Audit every pair, or what is left; print the numbers of all, and where they are."""
    console = stdout()
    with shown(console) as watch:
        runs = run_pairs(spec, folder, watch, figures)
    _print(runs, console)
    console.print(f"Tables: {folder / TABLE}, {folder / PAGE}", soft_wrap=True)
    for run in runs.values():
        console.print(f"Report: {run.report}", soft_wrap=True)


def _print(runs: dict[str, Run], console: Console) -> None:
    """Accuracy of the model, and for every proxy what it loses out of distribution."""
    shown = Table(
        title="Predictions in common with the model, in distribution → out of it; "
        "what is lost, in points",
        caption=f"{LEGEND}; no sign: faithful. {NOTE}",
        show_lines=True,
    )
    shown.add_column("proxy", overflow="fold")
    for name in runs:
        shown.add_column(split_label(name), justify="right")
    accuracy = accuracies(runs).values()
    shown.add_row("accuracy of the model", *(f"{a:.2f} → {b:.2f}" for a, b in accuracy))
    for name, row in matrix(table(runs)).items():
        cells = []
        for pair in runs:
            of = row[pair]
            said = f"{of['iid']:.2f} → {of['ood']:.2f}\n{change(of)}"
            cells.append(f"[{STYLE[of['verdict']]}]{said}[/]")
        shown.add_row(escape(name), *cells)
    console.print(shown)
