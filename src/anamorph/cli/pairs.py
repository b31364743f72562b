"""`anamorph run` of pairs of texts: all pairs in one table."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from anamorph.analysis.words import split_label
from anamorph.auditing.local import Engine
from anamorph.cli.console import print_json, progress_console, stdout
from anamorph.cli.layout import Sheet
from anamorph.cli.progress import shown
from anamorph.cli.tables import STYLE
from anamorph.report.opened import load_run
from anamorph.report.pairs import LEGEND, NOTE, accuracies, change, matrix, table
from anamorph.runs.folder import Run
from anamorph.store import Address, address_of
from anamorph.studies.pairs import PAGE, TABLE, PairsSpec, run_pairs


def pairs_into(
    folder: Address | str,
    spec: PairsSpec,
    as_json: bool = False,
    figures: Sequence[str] | None = None,
    engine: Engine | None = None,
) -> dict[str, Run]:
    """Audit every pair, or what is left; print the numbers of all, and where they are.

    With `as_json` the summaries of all runs are printed, by the names of the pairs. `figures` are
    as of `anamorph.report.render`, and `engine` as of `anamorph.studies.study.run_study`.

    Returns:
        the runs, by the names of the pairs.
    """
    with shown(progress_console(as_json)) as watch:
        runs = run_pairs(spec, folder, watch, figures, engine)
    if as_json:
        print_json({name: load_run(run.path).summary() for name, run in runs.items()})
        return runs
    console = stdout()
    _print(runs, console)
    at = address_of(folder)
    console.print(f"Tables: {at / TABLE}, {at / PAGE}", soft_wrap=True, markup=False)
    for run in runs.values():
        console.print(f"Report: {run.report}", soft_wrap=True, markup=False)
    return runs


def _print(runs: dict[str, Run], console: Console) -> None:
    """Accuracy of the model, and for every proxy what it loses out of distribution."""
    rows = [
        [
            "accuracy of the model",
            *(f"{a:.2f} → {b:.2f}" for a, b in accuracies(runs).values()),
        ]
    ]
    for name, row in matrix(table(runs)).items():
        cells = []
        for pair in runs:
            of = row[pair]
            said = f"{of['iid']:.2f} → {of['ood']:.2f}\n{change(of)}"
            cells.append(f"[{STYLE[of['verdict']]}]{said}[/]")
        rows.append([escape(name), *cells])
    Sheet(
        "Predictions in common with the model, in distribution → out of it; what is lost, in "
        "points",
        ["proxy", *map(split_label, runs)],
        rows,
        f"{LEGEND}; no sign: faithful. {NOTE}",
        lined=True,
    ).print(console)
