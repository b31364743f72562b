"""A run's numbers as tables in the terminal."""

from collections.abc import Mapping

import polars as pl
from rich.console import Console
from rich.markup import escape

from anamorph.analysis.edited_heads import single_heads
from anamorph.analysis.findings import Findings
from anamorph.analysis.heads import rows
from anamorph.analysis.summary import evidence, headline, notices
from anamorph.analysis.words import SIGNS, UNTESTABLE, UNTESTED, rounding_sentence, split_label
from anamorph.cli.layout import NOTHING, Sheet, say
from anamorph.cli.rows import (
    REPORTED,
    STANDING,
    legend,
    of_controls,
    of_models,
    of_proxies,
    of_reported,
    of_views,
)
from anamorph.faithfulness.gaps import FAITHFUL, MIXED, OVER, UNDECIDED, UNDER
from anamorph.runs.folder import Run
from anamorph.tasks import Task

STYLE = dict.fromkeys(SIGNS, "dim") | {
    FAITHFUL: "green",
    UNDER: "red",
    OVER: "magenta",
    MIXED: "red",
    UNDECIDED: "yellow",
}
MOST_HEADS = 20  # rows


def print_run(run: Run, console: Console) -> None:
    """Accuracy of the model, faithfulness and verdict of every proxy, and the claims."""
    found = Findings(run.path, run.spec)
    single = single_heads(found.results, found.spec["model"])
    hidden = single if len(single) > MOST_HEADS else {}
    _print_shares(found, hidden, console)
    if told := of_reported(found):
        heads = ["proxy", "", *map(split_label, found.splits)]
        rows = [[escape(name), called, *texts] for name, called, texts in told]
        Sheet(REPORTED, heads, rows, words=heads[:2]).print(console)
    _print_heads(found, console)
    _print_claims(found, console)
    if floor := found.checks.get("noise_floor"):
        said = f"Noise floor (rounding alone): same prediction {floor['same_prediction']:.5f}, "
        say(console, f"{said}divergence of the outputs {floor['output_jsd']:.1e} bits.")
    if said := rounding_sentence(found.checks.get("rounding")):
        say(console, said)
    _print_summary(found, console)


def _print_shares(found: Findings, hidden: Mapping[str, object], console: Console) -> None:
    """The share of same predictions of every proxy on every split, but for those hidden."""
    caption = legend(found)
    if hidden:
        caption += f". Not shown: {len(hidden)} proxies of single heads (below; all with --csv)"
    if beside := found.controls["simplification"].n_unique():
        caption += f". Not shown: {beside} control{'s' if beside > 1 else ''} (with --csv)"
    over = f", over {len(found.seeds)} models" if len(found.seeds) > 1 else ""
    title = f"Share of predictions that proxy and model have in common{over}"
    accuracy = of_models(found, "model_accuracy")[None]
    rows = [["[bold]accuracy of the model", *(f"[bold]{x.value:.3f}  [/]" for x in accuracy)]]
    for name, cells in of_proxies(found).items():
        if name not in hidden:
            rows.append([escape(name), *(_cell(*cell) for cell in cells)])
    Sheet(title, ["proxy", *map(split_label, found.splits)], rows, caption).print(console)


def _print_claims(found: Findings, console: Console) -> None:
    """Status and finding of every claim; those that cannot be tested in a line."""
    folded: dict[tuple[str, str], list[str]] = {}
    for claim in found.claims:
        name, status, finding = claim["id"], claim["status"], claim["finding"]
        if status in (UNTESTED, UNTESTABLE):
            why = finding if status == UNTESTABLE else ""
            folded.setdefault((status, why), []).append(name)
        else:
            say(console, f"{name} {status}: {claim['claim']}", indent="   ")
            say(console, f"   {finding}", "dim", indent="   ")
    for (status, why), names in folded.items():
        say(console, f"{status[0].upper()}{status[1:]}: {', '.join(names)}. {why}".strip())


def _print_summary(found: Findings, console: Console) -> None:
    """Which views hold, on what evidence, and what must be known before."""
    if views := of_views(found):
        families = len(found.families)
        few = f"{len(views)} of {families} families of proxies" if len(views) < families else ""
        rows = [[escape("\n".join(each)) or NOTHING for each in view] for view in views]
        title = "Which simplified views hold"
        Sheet(title, STANDING, rows, few, texts=True, lined=True).print(console)
    for said in of_controls(found):
        say(console, said)
    for notice in notices(found):
        say(console, f"{notice.title}. {notice.text}", "yellow")
    say(console, evidence(found).sentence)
    say(console, headline(found).sentence, "bold")


def _print_heads(found: Findings, console: Console) -> None:
    """The heads with the largest gaps, if proxies edit single heads."""
    heads = found.by_head
    if heads is None:
        return
    for method in heads.methods:
        every = rows(heads, method, found.splits)
        lines = []
        for row in every[:MOST_HEADS]:
            seed = f", seed {row['seed']}" if len(found.seeds) > 1 else ""
            numbers = (row[key] for key in ("gap", "low", "high"))
            gap, low, high = ("–" if x is None else f"{100 * x:.1f}" for x in numbers)
            at = [split_label(part) for part in (row["split"], row["size_text"]) if part]
            ends = (gap, f"{low} to {high}", escape(", ".join(at)))
            lines.append([f"{row['name']}{seed}", *row["smallest"], *ends])
        Sheet(
            f"{method}: the smallest size that is shown to have {heads.least:.0%} of "
            "predictions in common, and the largest gap of each head",
            ["head", *map(split_label, found.splits), "gap, points", "interval", "at"],
            lines,
            f"{min(MOST_HEADS, len(every))} of {len(every)} heads, the largest gaps first; "
            "none: shown to have less even at the largest size; ? the data cannot say; intervals "
            "hold for all gaps at once",
            words=["at"],
        ).print(console)


def print_curves(run: Run, console: Console) -> None:
    """The last point of the training curves."""
    history = run.history
    if history is None:
        return
    last = history.filter(pl.col("step") == history["step"].max())
    wide = last.pivot(on="split", index="seed", values="accuracy", maintain_order=True)
    lines = [[str(seed), *(f"{x:.3f}" for x in values)] for seed, *values in wide.iter_rows()]
    heads = [split_label(name) for name in wide.columns]
    Sheet("Accuracy of the models at scored positions", heads, lines).print(console)


def print_splits(task: Task, console: Console) -> None:
    """Sizes of a task's splits."""
    heads = ["split", "role", "sequences", "tokens", "scored", "mean length"]
    lines = []
    for split in task.splits.values():
        counts = (len(split), len(split.tokens), split.scored.sum())
        mean = f"{split.lengths.mean():.1f}"
        name, numbers = escape(split.name), (f"{count:,}" for count in counts)
        lines.append([name, split.role, *numbers, mean])
    Sheet(f"Task {task.name}", heads, lines, words=heads[:2]).print(console)
    made = task.spec.get("splits", {})
    columns = list(dict.fromkeys(k for found in made.values() for k in found if k not in heads))
    lines = [
        [escape(split), *(f"{found[c]:,}" if c in found else "" for c in columns)]
        for split, found in made.items()
    ]
    if columns:
        heads = ["split", *map(split_label, columns)]
        Sheet("What they were made from", heads, lines).print(console)


def _cell(value: float, verdict: str | None) -> str:
    if verdict is None:
        return f"{value:.3f}  "
    return f"[{STYLE[verdict]}]{value:.3f} {SIGNS[verdict] or ' '}[/]"
