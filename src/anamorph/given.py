"""The audit of a model that somebody has, into a run folder: fit → audit → results → report.

As in `anamorph.study`, each step leaves a file and is passed over if the file is there.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anamorph import claims, report
from anamorph.audit import describe_proxies, fit_on_train, scored_sequences, with_identity
from anamorph.choices import choices_of_given
from anamorph.engine import audit_split
from anamorph.errors import AnamorphError
from anamorph.faithfulness import CellSums, SumIndex, Thresholds, tabulate
from anamorph.faithfulness.confidence import PRIOR_CORRELATION
from anamorph.models.huggingface import HuggingFace
from anamorph.runs import CellFiles, Run, open_run, write_json, write_table
from anamorph.simplifications import Attachment, FittedProxies, Proxy, Sweep, check_proxies, sweep
from anamorph.study import Event, Watch, ignore
from anamorph.tasks import Task
from anamorph.tasks.batches import collate
from anamorph.tasks.checks import check_context, check_vocabulary

BATCH_TOKENS = 1_024  # of real language models, whose blocks are wide


def audit_given(
    model: HuggingFace,
    task: Task,
    simplify: Sequence[str | Attachment | Proxy],
    out: Path | str,
    *,
    name: str = "model",
    by: Sweep = "head",
    sequences: int = 1000,
    fit_sequences: int = 1000,
    until: float | None = None,
    correlation: float = PRIOR_CORRELATION,
    resamples: int = 1000,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    thresholds: Thresholds | None = None,
    watch: Watch = ignore,
) -> Run:
    """Fit simplifications, put them into a given model, compare on every split, and report.

    Args:
        model: the original.
        task: its data, such as `anamorph.tasks.text_task` makes.
        simplify: spec strings or attachments; a list value stands for one proxy each.
        out: the run folder; the same call goes on with what lies there.
        name: what the model is called in the report.
        by: one proxy a `head`, one a `layer`, or `all` sites of a spec at once.
        sequences: of each split, at most.
        fit_sequences: of `train`.
        until: stop each cell when a confidence sequence of its `same_prediction` is so narrow.
        correlation: of the positions of a sequence, assumed with `until` before any disagreement
            shows what it is; see `anamorph.faithfulness.confidence`.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        batch_tokens: tokens a batch; the numbers do not depend on it.
        thresholds: where the lines between verdicts are drawn.
        watch: told of progress.

    Raises:
        AnamorphError: if model, data and proxies do not fit together, or `out` holds something
            else or cannot be written to; then nothing is lost.
    """
    if until is not None and not 0 < until < 1:
        raise AnamorphError(f"until must be a width between 0 and 1; got {until}.")
    check_vocabulary(task, model.vocabulary)
    if model.context is not None:
        check_context(task, model.context)
    proxies = with_identity(sweep(simplify, model.sites, by))
    check_proxies(model, proxies, collate(task.train, np.arange(1)))
    limits = thresholds or Thresholds()
    audit = {
        "sequences": sequences,
        "fit_sequences": fit_sequences,
        "until": until,
        "correlation": correlation,
        "resamples": resamples,
        "seed": seed,
        "by": by,
        "thresholds": asdict(limits),
    }
    spec: dict[str, Any] = {
        "study": task.name,
        "preset": None,
        "task": dict(task.spec),
        "model": {"name": name, **model.describe()},
        "training": None,
        "simplify": [str(s) for s in simplify],
        "audit": audit,
        "seeds": [0],
        "threads": torch.get_num_threads(),
    }
    run = open_run(out, {**spec, "choices": choices_of_given(spec)})
    if run.complete:
        return run
    with model.session():
        fitted = _fit(run, model, task, proxies, fit_sequences, watch)
        _audit(run, model, task, proxies, fitted, batch_tokens, watch)
    indexes = {s.name: SumIndex.of(scored_sequences(s, sequences)) for s in task.evaluated}
    results, gaps = tabulate(
        CellFiles(run, [0], [str(p) for p in proxies], indexes),
        describe_proxies(proxies),
        {split.name: split.role for split in task.evaluated},
        reference=task.reference.name,
        resamples=resamples,
        seed=seed,
        thresholds=limits,
    )
    write_table(run.path / "gaps.parquet", gaps)
    write_table(run.path / "results.parquet", results)
    write_json(run.path / "claims.json", [])
    write_json(run.path / "checks.json", claims.self_checks(results, run.spec))
    watch(Event("report", 0, 1))
    report.render(run.path)
    watch(Event("report", 1, 1))
    return run


def _fit(
    run: Run, model: HuggingFace, task: Task, proxies: Sequence[Proxy], sequences: int, watch: Watch
) -> FittedProxies:
    path = run.seed(0) / "simplifications.safetensors"
    if path.exists():
        return FittedProxies.load(path)
    step = f"fitting {len(proxies) - 1} proxies"
    watch(Event(step, 0, 1))
    fitted = fit_on_train(model, proxies, task, sequences)
    fitted.save(path)
    watch(Event(step, 1, 1))
    return fitted


def _audit(
    run: Run,
    model: HuggingFace,
    task: Task,
    proxies: Sequence[Proxy],
    fitted: FittedProxies,
    batch_tokens: int,
    watch: Watch,
) -> None:
    asked = run.spec["audit"]
    for split in task.evaluated:
        pending = [p for p in proxies if not run.cell(0, str(p), split.name).exists()]
        if not pending:
            continue

        def write(proxy: Proxy, sums: CellSums, split: str = split.name) -> None:
            write_table(run.cell(0, str(proxy), split), sums.table())

        audit_split(
            model,
            scored_sequences(split, asked["sequences"]),
            task.candidates,
            [fitted[p] for p in pending],
            batch_tokens=batch_tokens,
            until=asked["until"],
            correlation=asked["correlation"],
            finished=write,
            watch=lambda done, total, step=f"audit on {split.name}": watch(  # type: ignore[misc]
                Event(step, done, total)
            ),
        )
