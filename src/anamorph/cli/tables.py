"""A run's numbers as tables in the terminal."""

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anamorph.analysis.edited_heads import single_heads
from anamorph.analysis.findings import read
from anamorph.analysis.heads import Heads, rows
from anamorph.analysis.summary import Standing, evidence, headline, notices, standings
from anamorph.analysis.words import SIGNS, UNTESTABLE, UNTESTED, rounding_sentence
from anamorph.faithfulness.gaps import (
    DEGRADES,
    FAITHFUL,
    MIXED,
    NOT_TESTABLE,
    OVER,
    UNDECIDED,
    UNDER,
    UNFAITHFUL,
)
from anamorph.runs.folder import Run
from anamorph.tasks import Task

STYLE = {
    FAITHFUL: "green",
    UNDER: "red",
    OVER: "magenta",
    MIXED: "red",
    DEGRADES: "dim",
    UNFAITHFUL: "dim",
    UNDECIDED: "yellow",
    NOT_TESTABLE: "dim",
}
MOST_HEADS = 20  # rows
LEGEND = ", ".join(f"{sign} {verdict}" for verdict, sign in SIGNS.items() if sign)


def print_run(run: Run, console: Console) -> None:
    """Accuracy of the model, faithfulness and verdict of every proxy, and the claims."""
    results = run.results.filter(pl.col("seed").is_null() & pl.col("facet").is_null())
    splits = results["split"].unique(maintain_order=True).to_list()
    reference = str(results.filter(role="iid")["split"][0])
    models = len(run.spec["seeds"])
    over = f", over {models} models" if models > 1 else ""
    single = single_heads(run.results, run.spec["model"])
    hidden = single if len(single) > MOST_HEADS else {}
    caption = f"{LEGEND}; no mark: faithful; {reference} is what the others are compared with"
    if hidden:
        caption += f". Not shown: {len(hidden)} proxies of single heads (below; all with --json)"
    table = Table(
        title=f"Share of predictions that proxy and model have in common{over}", caption=caption
    )
    table.add_column("proxy", overflow="fold")
    for split in splits:
        table.add_column(split.replace("_", " "), justify="right", min_width=7)
    accuracy = _by_split(results, "model_accuracy", "identity")
    table.add_row("accuracy of the model", *(f"{accuracy[s]:.3f}  " for s in splits), style="bold")
    table.add_section()
    verdicts = {
        (row["simplification"], row["split"]): row["verdict"]
        for row in run.gaps.filter(
            pl.col("seed").is_null() & (pl.col("metric") == "same_prediction")
        ).to_dicts()
    }
    for name in results["simplification"].unique(maintain_order=True).to_list():
        if name == "identity" or name in hidden:
            continue
        same = _by_split(results, "same_prediction", name)
        cells = [_cell(same[split], verdicts.get((name, split))) for split in splits]
        table.add_row(escape(name), *cells)
    console.print(table)
    _print_heads(run, splits, console)
    _print_claims(run, console)
    if floor := run.checks.get("noise_floor"):
        console.print(
            f"Noise floor (rounding alone): same prediction {floor['same_prediction']:.5f}, "
            f"divergence of the outputs {floor['output_jsd']:.1e} bits.",
            highlight=False,
        )
    if said := rounding_sentence(run.checks.get("rounding")):
        console.print(said, highlight=False)
    _print_summary(run, console)


def _print_claims(run: Run, console: Console) -> None:
    """Status and finding of every claim; those that cannot be tested in a line."""
    folded: dict[tuple[str, str], list[str]] = {}
    for claim in run.claims:
        if claim["status"] in (UNTESTED, UNTESTABLE):
            why = claim["finding"] if claim["status"] == UNTESTABLE else ""
            folded.setdefault((claim["status"], why), []).append(claim["id"])
            continue
        console.print(
            f"{claim['id']} {claim['status']}: {escape(claim['claim'])}\n"
            f"   [dim]{escape(claim['finding'])}",
            highlight=False,
        )
    for (status, why), claims in folded.items():
        said = f"{status[0].upper()}{status[1:]}: {', '.join(claims)}. {why}".strip()
        console.print(escape(said), highlight=False)


def _print_summary(run: Run, console: Console) -> None:
    """Which views hold, on what evidence, and what must be known before."""
    content = read(run.path)
    counted = headline(content)
    if content.ood and counted.untestable < counted.proxies:
        found = [s for s in standings(content) if s.title in content.telling_families]
        console.print(_standings(found, len(content.families)))
    for notice in notices(content):
        console.print(f"[yellow]{escape(notice.title)}.[/] {escape(notice.text)}", highlight=False)
    console.print(evidence(content).sentence, highlight=False)
    console.print(f"[bold]{escape(counted.sentence)}", highlight=False)


def _standings(found: list[Standing], families: int) -> Table:
    caption = f"{len(found)} of {families} families of proxies" if len(found) < families else None
    table = Table(title="Which simplified views hold", caption=caption, show_lines=True)
    for column in ("view", "trust", "do not trust", "needs more data (of each split)"):
        table.add_column(column)
    for standing in found:
        texts = ("\n".join(texts) for texts in standing[1:])
        table.add_row(escape(standing.title), *(escape(text) or "–" for text in texts))
    return table


def _print_heads(run: Run, splits: list[str], console: Console) -> None:
    """The heads with the largest gaps, if proxies edit single heads."""
    heads = Heads.of(run.results, run.gaps, run.spec["model"], None)
    for method in heads.methods if heads else ():
        assert heads is not None
        found = rows(heads, method, splits)
        table = Table(
            title=f"{escape(method)}: the smallest size that is shown to have {heads.least:.0%} of "
            "predictions in common, and the largest gap of each head",
            caption=f"{min(MOST_HEADS, len(found))} of {len(found)} heads, the largest gaps first; "
            "none: shown to have less even at the largest size; ? the data cannot say; intervals "
            "hold for all gaps at once",
        )
        for column in ("head", *splits, "gap, points", "interval", "at"):
            words = column in ("head", "at")
            table.add_column(column.replace("_", " "), justify="left" if words else "right")
        for row in found[:MOST_HEADS]:
            name = (
                f"{row['name']}, seed {row['seed']}" if len(run.spec["seeds"]) > 1 else row["name"]
            )
            gap, low, high = (
                "–" if row[key] is None else f"{100 * row[key]:.1f}"
                for key in ("gap", "low", "high")
            )
            at = [row["split"], row["size_text"]]
            where = ", ".join(part.replace("_", " ") for part in at if part)
            table.add_row(name, *row["smallest"], gap, f"{low} to {high}", where)
        console.print(table)


def print_curves(run: Run, console: Console) -> None:
    """The last point of the training curves."""
    history = run.history
    if history is None:
        return
    last = history.filter(pl.col("step") == history["step"].max())
    table = Table(title="Accuracy of the models at scored positions")
    splits = last["split"].unique(maintain_order=True).to_list()
    for column in ("seed", *splits):
        table.add_column(column.replace("_", " "), justify="right")
    for (seed,), some in last.group_by("seed", maintain_order=True):
        values = dict(zip(some["split"], some["accuracy"], strict=True))
        table.add_row(str(seed), *(f"{values[s]:.3f}" for s in splits))
    console.print(table)


def print_splits(task: Task, console: Console) -> None:
    """Sizes of a task's splits."""
    table = Table(title=f"Task {task.name}")
    for column in ("split", "role", "sequences", "tokens", "scored", "mean length"):
        table.add_column(column, justify="left" if column in ("split", "role") else "right")
    for split in task.splits.values():
        table.add_row(
            split.name,
            split.role,
            f"{len(split):,}",
            f"{len(split.tokens):,}",
            f"{split.scored.sum():,}",
            f"{split.lengths.mean():.1f}",
        )
    console.print(table)
    counts = task.spec.get("splits", {})
    said = ("role", "sequences", "tokens")
    columns = list(dict.fromkeys(k for found in counts.values() for k in found if k not in said))
    if not columns:
        return
    table = Table(title="What they were made from")
    table.add_column("split")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for split, found in counts.items():
        table.add_row(split, *(f"{found[c]:,}" if c in found else "" for c in columns))
    console.print(table)


def _by_split(results: pl.DataFrame, metric: str, name: str) -> dict[str, float]:
    rows = results.filter((pl.col("metric") == metric) & (pl.col("simplification") == name))
    return dict(zip(rows["split"], rows["value"], strict=True))


def _cell(value: float, verdict: str | None) -> str:
    if verdict is None:
        return f"{value:.3f}  "
    return f"[{STYLE[verdict]}]{value:.3f} {SIGNS[verdict] or ' '}[/]"
