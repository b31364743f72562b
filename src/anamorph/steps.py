"""The steps that every audit into a run folder takes, whoever trained the model.

Each leaves a file and is passed over if the file is there, so that the same call goes on where a
killed one stopped.
"""

from collections.abc import Sequence
from typing import Any

import polars as pl

from anamorph import claims, report
from anamorph.audit import describe_proxies, fit_on_train, noise_floor, scored_sequences
from anamorph.engine import BATCH_TOKENS, audit_split
from anamorph.faithfulness import CellSums, SumIndex, tabulate
from anamorph.heads import edited_head, head_scores
from anamorph.models.base import Model
from anamorph.progress import Event, Watch
from anamorph.runs import CellFiles, Run, read_json, write_json, write_table
from anamorph.simplifications import FittedProxies, Proxy
from anamorph.specification import AuditSpec
from anamorph.tasks import Task


def fit_seed(
    run: Run,
    audit: AuditSpec,
    task: Task,
    model: Model,
    proxies: Sequence[Proxy],
    seed: int,
    watch: Watch,
) -> FittedProxies:
    """The fitted proxies of a seed; fits them unless they lie there already."""
    path = run.seed(seed) / "simplifications.safetensors"
    if path.exists():
        return FittedProxies.load(path)
    step = f"seed {seed}: fitting {sum(bool(p.attachments) for p in proxies)} proxies"
    watch(Event(step, 0, 1))
    fitted = fit_on_train(model, proxies, task, audit.fit_sequences)
    fitted.save(path)
    watch(Event(step, 1, 1))
    return fitted


def audit_seed(
    run: Run,
    audit: AuditSpec,
    task: Task,
    model: Model,
    fitted: FittedProxies,
    seed: int,
    watch: Watch,
    **options: Any,
) -> None:
    """Write the cells of a seed that do not lie there yet; options are `audit_split`'s."""
    for split in task.evaluated:
        pending = [p for p in fitted if not run.cell(seed, str(p), split.name).exists()]
        if not pending:
            continue

        def write(proxy: Proxy, sums: CellSums, split: str = split.name) -> None:
            write_table(run.cell(seed, str(proxy), split), sums.table())

        audit_split(
            model,
            scored_sequences(split, audit.sequences),
            task.candidates,
            [fitted[p] for p in pending],
            finished=write,
            watch=lambda done, total, step=f"seed {seed}: audit on {split.name}": watch(  # type: ignore[misc]
                Event(step, done, total)
            ),
            **options,
        )


def score_heads(
    run: Run,
    task: Task,
    model: Model,
    proxies: Sequence[Proxy],
    seed: int,
    watch: Watch,
    batch_tokens: int = BATCH_TOKENS,
) -> None:
    """Write `heads.parquet` of a seed, if some proxy edits a single head."""
    path = run.seed(seed) / "heads.parquet"
    if path.exists() or not any(edited_head(p.sites, model.sites) for p in proxies):
        return
    step = f"seed {seed}: head scores"
    watch(Event(step, 0, 1))
    scores = head_scores(model, task.reference, batch_tokens=batch_tokens)
    write_table(path, scores.select(pl.lit(seed, pl.Int64).alias("seed"), pl.all()))
    watch(Event(step, 1, 1))


def measure_noise(
    run: Run, task: Task, model: Model, seed: int, watch: Watch, batch_tokens: int = BATCH_TOKENS
) -> None:
    """Write `noise.json` of a seed."""
    path = run.seed(seed) / "noise.json"
    if not path.exists():
        step = f"seed {seed}: noise floor"
        watch(Event(step, 0, 1))
        write_json(path, noise_floor(model, task, batch_tokens=batch_tokens))
        watch(Event(step, 1, 1))


def tabulate_run(run: Run, audit: AuditSpec, task: Task, proxies: Sequence[Proxy]) -> None:
    """Write `results.parquet` and `gaps.parquet` from the cells."""
    indexes = {
        split.name: SumIndex.of(scored_sequences(split, audit.sequences))
        for split in task.evaluated
    }
    results, gaps = tabulate(
        CellFiles(run, run.spec["seeds"], [str(p) for p in proxies], indexes),
        describe_proxies(proxies),
        {split.name: split.role for split in task.evaluated},
        reference=task.reference.name,
        resamples=audit.resamples,
        seed=audit.seed,
        thresholds=audit.thresholds,
    )
    write_table(run.path / "gaps.parquet", gaps)
    write_table(run.path / "results.parquet", results)


def report_run(run: Run, watch: Watch) -> None:
    """Write `checks.json`, and the report."""
    noise = [read_json(run.seed(seed) / "noise.json") for seed in run.spec["seeds"]]
    write_json(run.path / "checks.json", claims.self_checks(run.results, noise))
    watch(Event("report", 0, 1))
    report.render(run.path)
    watch(Event("report", 1, 1))
