"""`anamorph compare A B`: what differs between two runs, models, checkpoints or seeds."""

import json
import re
from typing import Annotated, Any

import polars as pl
import typer
from rich.console import Console
from rich.text import Text

from anamorph.analysis.compare import Comparison, as_objects
from anamorph.analysis.compare import compare as compared
from anamorph.analysis.formats import FORMATS
from anamorph.analysis.gates import (
    CHANGED,
    DIFFERENCE,
    NO_VERDICT,
    VERDICTS,
    Gates,
    failing_between,
)
from anamorph.cli.console import stdout
from anamorph.cli.gates import PANEL, end
from anamorph.errors import AnamorphError, require
from anamorph.faithfulness.metrics import JUDGED, find_metric

SHOWN = (JUDGED, "model_accuracy")
MOST_ROWS = 40
MOST_ALIKE = 8  # verdicts that changed in the same way, a line each
IN_DOCUMENTS = ["of", "proxy", "split", "metric", "a", "b", "difference", "low", "high"]


First = Annotated[
    str, typer.Argument(help="A run folder, or RUN/seed-N.", metavar="A", show_default=False)
]
Second = Annotated[
    str, typer.Argument(help="With what to compare it.", metavar="B", show_default=False)
]
Proxies = Annotated[
    list[str] | None,
    typer.Option(help="SPEC=SPEC: a proxy of A beside another of B; repeatable."),
]
Unpaired = Annotated[bool, typer.Option("--unpaired", help="Also splits with other sequences.")]
Metrics = Annotated[
    list[str] | None, typer.Option(help="Only this metric; repeatable.", show_default="main")
]
All = Annotated[bool, typer.Option("--all", help="Also what does not differ, and all metrics.")]
Json = Annotated[bool, typer.Option("--json", help="Print all as JSON.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print all as CSV.")]
Latex = Annotated[bool, typer.Option("--latex", help="Print the table for LaTeX.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print it for a document.")]
Fall = Annotated[
    float | None,
    typer.Option(
        help="If a view's share of same predictions falls by more, such as 0.02.",
        rich_help_panel=PANEL,
    ),
]
Events = Annotated[
    list[str] | None,
    typer.Option(
        help=f"{DIFFERENCE}: if a view's value or gap differs; {CHANGED}: if a verdict changed; "
        f"{', '.join(VERDICTS)}: if B has it where A has not; repeatable.",
        rich_help_panel=PANEL,
    ),
]


def compare(
    a: First,
    b: Second,
    proxy: Proxies = None,
    unpaired: Unpaired = False,
    metric: Metrics = None,
    everything: All = False,
    as_json: Json = False,
    csv: Csv = False,
    latex: Latex = False,
    markdown: Markdown = False,
    fail_below: Fall = None,
    fail_on: Events = None,
) -> None:
    """Compare two runs, checkpoints or seeds, paired by sequence: values, gaps, verdicts.

    A difference is of B less A, with a 95 % interval; what is said to
    differ is corrected for how much was looked at. Two seeds of a run:
    anamorph compare RUN/seed-0 RUN/seed-1. Two models: anamorph audit
    with --simplify 'model(PATH)'.
    """
    given = {"json": as_json, "csv": csv, "latex": latex, "markdown": markdown}
    kinds = [name for name, wanted in given.items() if wanted]
    if len(kinds) > 1:
        raise AnamorphError(f"Give one of {', '.join(f'--{kind}' for kind in kinds)}.")
    gates = Gates.of_comparison(fail_below, fail_on or ())
    found = compared(a, b, proxies=proxy or (), unpaired=unpaired)
    known = found.values["metric"].unique().sort().to_list()
    for name in metric or ():
        require("--metric", name, among=known)
    wanted = set(metric or (known if everything or as_json or csv else SHOWN))
    table = found.differences.filter(pl.col("metric").is_in(wanted))
    shown = table if everything else table.filter("differs")
    match kinds:
        case ["json"]:
            print(json.dumps(as_objects(found), ensure_ascii=False, allow_nan=False))
        case ["csv"]:
            print(FORMATS["csv"](table), end="")
        case ["latex"]:
            print(f"% {found.headline}")
            print(FORMATS["latex"](_for_documents(shown)), end="")
        case ["markdown"]:
            print(_document(found, shown), end="")
        case _:
            _show(found, shown, stdout())
    if gates.given:
        end(failing_between(found, gates))


def _named(column: str, other: str) -> pl.Expr:
    """A proxy, and beside which other it stands if that has another spec."""
    same = pl.col(column) == pl.col(other)
    both = pl.concat_str(column, other, separator=" → ")
    return pl.when(same).then(column).otherwise(both).alias("proxy")


def _for_documents(table: pl.DataFrame) -> pl.DataFrame:
    named = table.with_columns(_named("simplification", "simplification_b"))
    return named.select(*IN_DOCUMENTS, pl.col("p_corrected").alias("p"))


def _changed(found: Comparison) -> pl.DataFrame:
    table = found.verdicts.filter("changed")
    return table.select(_named("simplification", "simplification_b"), "split", "a", "b")


def _document(found: Comparison, table: pl.DataFrame) -> str:
    """What differs as Markdown, such as for a comment on a pull request."""
    said = [f"**{_plain(found.headline)}**\n", f"A: `{found.first}`, B: `{found.second}`\n"]
    if len(table):
        said.append(_for_markdown(_for_documents(table)))
    if len(changed := _changed(found)):
        said.append(f"Verdicts that changed\n\n{_for_markdown(changed)}")
    said += [f"{_plain(note)}\n" for note in found.notes]
    return "\n".join(said)


def _for_markdown(table: pl.DataFrame) -> str:
    """With names from outside as code, in which nothing means anything."""
    code = pl.format("`{}`", pl.col("proxy", "split").str.replace_all("`", "'"))
    return FORMATS["markdown"](table.with_columns(code))


def _plain(text: str) -> str:
    """Without what Markdown would take for emphasis or HTML."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", text)


def _show(found: Comparison, table: pl.DataFrame, console: Console) -> None:
    """In lines that can be searched: none is broken, and at 80 columns only long specs are."""

    def say(text: str, style: str | None = None) -> None:
        console.print(Text(text, style or ""), soft_wrap=True)

    largest = table.with_row_index().sort(pl.col("difference").abs(), descending=True)
    shown = largest.head(MOST_ROWS).sort("index")
    width = max((len(split) for split in shown["split"]), default=0)
    for (of, metric), some in shown.group_by("of", "metric", maintain_order=True):
        what = find_metric(str(metric)).label
        title = f"gap in {what}" if of == "gap" else what
        say(f"{title}: A → B, B less A [95 % interval]", "bold")
        named = some.with_columns(_named("simplification", "simplification_b"))
        for (proxy,), rows in named.group_by("proxy", maintain_order=True):
            say(f"  {proxy}")
            for row in rows.iter_rows(named=True):
                say(f"    {row['split']:{width}}  {_numbers(row)}")
    if len(shown) < len(table):
        say(f"{MOST_ROWS} of {len(table):,} rows are shown, the largest; all with --csv.")
    changed = _changed(found)
    if len(changed):
        say("Verdicts that changed: A → B", "bold")
    for (a, b), rows in changed.group_by("a", "b", maintain_order=True):
        change = f"{a or NO_VERDICT} → {b or NO_VERDICT}"
        if len(rows) > MOST_ALIKE:
            say(f"  {len(rows):,} cells: {change} (each by --json)")
            continue
        for proxy, split in rows.select("proxy", "split").iter_rows():
            say(f"  {proxy} on {split}: {change}")
    for note in found.notes:
        console.print(Text(note))
    console.print(Text(found.headline, "bold"))


def _numbers(row: dict[str, Any]) -> str:
    """The numbers of a row, three digits of a share and four of what else there is."""

    def text(number: float, sign: str = "") -> str:
        if find_metric(row["metric"]).share:
            return f"{number:{sign}.3f}"
        return f"{number:{sign}.4g}"

    both = f"{text(row['a'])} → {text(row['b'])}  {text(row['difference'], '+')}"
    if row["low"] is None:
        return both
    ends = f"{both} [{text(row['low'], '+')}, {text(row['high'], '+')}]"
    p = row["p_corrected"]
    if p is None:
        return f"{ends}  exact"
    return f"{ends}  p < 0.0001" if p < 0.0001 else f"{ends}  p {p:.4f}"
