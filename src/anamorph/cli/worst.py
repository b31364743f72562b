"""`anamorph worst RUN`: where a proxy and its model part most."""

import json
from typing import Annotated

import typer

from anamorph.analysis.worst import METRIC, chosen, positions, texts_of, usual, without_texts
from anamorph.analysis.worst import worst as worst_of
from anamorph.cli.console import stdout
from anamorph.cli.options import RunFolder
from anamorph.cli.texts import print_text, worst_positions
from anamorph.report.opened import load_run


def worst(
    run: RunFolder,
    proxy: Annotated[
        str | None, typer.Option(help="Its spec string.", show_default="the most telling one")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Of the data.", show_default="that of the largest gap")
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Sequences, at most.")] = 10,
    metric: Annotated[str, typer.Option(help="By which they part.")] = METRIC,
    by: Annotated[
        str, typer.Option(help="The mean over the scored positions of a sequence, or their sum.")
    ] = "mean",
    seed: Annotated[
        int | None, typer.Option(help="Of the model.", show_default="the first")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show the sequences on which a proxy and its model part most."""
    found = load_run(run)
    if proxy is None or split is None:
        name, place = usual(found.findings, proxy)
        proxy, split = proxy or name, split or place
    cell = chosen(found, proxy, split, seed)
    table = worst_of(found, cell, n, metric, by)  # type: ignore[arg-type]
    stored = texts_of(found, cell)
    held = set(stored["sequence"])
    texts = {s: positions(found, cell, s) for s in table["sequence"] if s in held}
    if as_json:
        rows = [
            {**row, "positions": worst_positions(texts[row["sequence"]]).to_dicts()}
            if row["sequence"] in texts
            else row
            for row in table.to_dicts()
        ]
        said = {**cell._asdict(), "metric": metric, "by": by, "sequences": rows}
        print(json.dumps(said, ensure_ascii=False))
        return
    console = stdout()
    space = " " if held and stored["separate"][0] else ""
    over = "a scored position" if by == "mean" else "in all"
    console.print(
        f"{cell.proxy} on {cell.split}: where it parts most from the model, by {metric} {over}",
        style="bold",
        markup=False,
    )
    for row in table.iter_rows(named=True):
        print_text(row, texts.get(row["sequence"]), space, console)
    if len(texts) < len(table):
        console.print(without_texts(found, cell), markup=False, soft_wrap=True)
