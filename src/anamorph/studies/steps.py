"""The steps that every audit into a run folder takes, whoever trained the model.

Each leaves a file and is passed over if the file is there, so that the same call goes on where a
killed one stopped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import polars as pl

from anamorph import report
from anamorph.analysis.edited_heads import edited_head
from anamorph.analysis.head_scores import head_scores
from anamorph.auditing.audit import describe_proxies, fit_on_train, simplified
from anamorph.auditing.engine import BATCH_TOKENS
from anamorph.auditing.noise import noise_floor, rounding
from anamorph.auditing.samples import few_sequences, scored_sequences
from anamorph.auditing.works import Auditor, Work, plan
from anamorph.errors import AnamorphError
from anamorph.faithfulness.estimates import Stopping
from anamorph.faithfulness.metrics import all_metrics, find_metric, metric_names
from anamorph.faithfulness.sums import SumIndex
from anamorph.faithfulness.tables import tabulate
from anamorph.files import write_table
from anamorph.models.base import Model
from anamorph.models.fingerprint import Identity, differing
from anamorph.paper import claims
from anamorph.progress import Event, Watch
from anamorph.runs.cells import (
    CellFiles,
    Origin,
    check_work,
    digest,
    digest_of_file,
    write_work,
)
from anamorph.runs.folder import Run, read_json, write_json
from anamorph.simplifications import FittedProxies, ProxySpec
from anamorph.studies.specification import AuditSpec
from anamorph.tasks import Task
from anamorph.tasks.base import CANDIDATES

FINGERPRINTS = "fingerprints.json"  # of a seed's weights


def fingerprints(
    task: Task, proxies: Sequence[ProxySpec], models: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """Digests of the data and of what proxies are made of, for `spec.json`.

    Args:
        task: the data.
        proxies: of the specification.
        models: the fingerprints of those that are other models, as `check_models` gives them.

    Raises:
        AnamorphError: if one of these has none.
    """
    for text, parts in models.items():
        if not parts:
            raise AnamorphError(
                f"{text} has no fingerprint(), so that a run folder could not tell its numbers "
                "from those of another model; define it, or use am.audit."
            )
    made = {a.simplification for proxy in simplified(proxies) for a in proxy.attachments}
    return {
        "data": task.fingerprints(),
        "simplifications": {str(s): s.fingerprint() for s in sorted(made, key=str)},
        "models": models,
    }


def keep_weights(run: Run, model: Model, seed: int) -> str:
    """A digest of a seed's weights, which are written down, or compared with what was.

    Raises:
        AnamorphError: as `check_weights`.
    """
    path = run.seed(seed) / FINGERPRINTS
    if not path.exists():
        write_json(path, model.fingerprint())
    return check_weights(run, model, seed)


def check_weights(run: Run, model: Model, seed: int) -> str:
    """A digest of a seed's weights.

    Raises:
        AnamorphError: if they are not those that the numbers in the run belong to.
    """
    path, now = run.seed(seed) / FINGERPRINTS, model.fingerprint()
    before = read_json(path, dict) if path.exists() else now
    different = [part for part in {**before, **now} if before.get(part) != now.get(part)]
    if different:
        raise AnamorphError(
            f"The model in {run.seed(seed)} is another than the one that its numbers belong to "
            f"({differing(different)}). Put the old one back, or delete this folder to have all of "
            "it made again."
        )
    return digest(now)


def fit_seed(
    run: Run,
    audit: AuditSpec,
    task: Task,
    model: Model,
    proxies: Sequence[ProxySpec],
    seed: int,
    watch: Watch,
) -> FittedProxies:
    """The fitted proxies of a seed; fits them unless they lie there already.

    Raises:
        AnamorphError: if what lies there was fitted to another model or other data.
    """
    path = run.seed(seed) / "simplifications.safetensors"
    batch = few_sequences(task, model)
    identity = Identity.of(model, batch)
    origin = {
        "weights": keep_weights(run, model, seed),
        "data": digest(run.spec["fingerprints"]["data"][task.train.name], audit.fit_sequences),
    }
    if path.exists():
        fitted = FittedProxies.load(path)
        if fitted.origin != origin:
            raise AnamorphError(
                f"{path} was fitted to another model or other data than there are now; delete it, "
                "and the same command fits again."
            )
        return fitted
    step = f"seed {seed}: fitting {sum(bool(p.attachments) for p in simplified(proxies))} proxies"
    watch(Event(step, 0, 1))
    found = fit_on_train(model, proxies, task, audit.fit_sequences)
    identity.require_same(model, batch)
    FittedProxies({p: f.by_site for p, f in found.items()}, found.layers, origin).save(path)
    watch(Event(step, 1, 1))
    return FittedProxies.load(path)  # as whoever goes on with the run will have them


def audit_seed(run: Run, auditor: Auditor, seed: int, watch: Watch) -> None:
    """Write the works of a seed that do not lie there yet.

    Raises:
        AnamorphError: if one that lies there comes from something else; or if a model is changed
            meanwhile.
    """
    task, model, specs = auditor.task, auditor.model, list(auditor.specs.values())
    batch, names = few_sequences(task, model), [split.name for split in task.evaluated]
    identity = Identity.of(model, batch)
    if digest(identity.weights) != auditor.fitted.origin["weights"]:
        raise AnamorphError("The model was changed after simplifications were fitted to it.")
    fits = digest_of_file(run.seed(seed) / "simplifications.safetensors")
    done = dict.fromkeys(names, 0)  # cells of each split
    for work in plan(specs, model, names):
        path, origin = run.work(seed, work.split, work.number), _origin(run, auditor, work, fits)
        if path.exists():
            check_work(path, origin)
        else:
            step, cells = f"seed {seed}: audit on {work.split}", (len(work.proxies), len(specs))
            sums = auditor.execute(work, partial(_tell, watch, step, done[work.split], cells))
            identity.require_same(model, batch)
            auditor.require_same(work, run.spec["fingerprints"]["models"])
            write_work(path, sums, origin)
        done[work.split] += len(work.proxies)


def _origin(run: Run, auditor: Auditor, work: Work, fits: str) -> Origin:
    """What the sums of a work come from."""
    known, options = run.spec["fingerprints"], replace(auditor.settings, threads=None)
    models = [known["models"][text] for text in work.proxies if text in known["models"]]
    return Origin(
        weights=auditor.fitted.origin["weights"],
        simplifications=digest(models) if models else fits,
        data=digest(known["data"][work.split], known["data"][CANDIDATES]),
        options=digest(run.spec["anamorph"], auditor.sequences, options, metric_names()),
    )


def _tell(
    watch: Watch, step: str, before: int, cells: tuple[int, int], done: int, total: int
) -> None:
    """Tell of a work, so many of all cells, as a part of a step."""
    some, every = cells
    watch(Event(step, before + some * done // total, every))


def score_heads(
    run: Run,
    task: Task,
    model: Model,
    proxies: Sequence[ProxySpec],
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
    """Write `noise.json` of a seed: the noise floor, and what batching alone does."""
    path = run.seed(seed) / "noise.json"
    if not path.exists():
        step = f"seed {seed}: noise floor"
        watch(Event(step, 0, 1))
        threads = run.spec["threads"]
        floor = noise_floor(model, task, batch_tokens=batch_tokens, threads=threads)
        write_json(path, {"floor": floor, "rounding": rounding(model, task)})
        watch(Event(step, 1, 1))


def tabulate_run(
    run: Run,
    audit: AuditSpec,
    task: Task,
    model: Model,
    proxies: Sequence[ProxySpec],
    stopping: Stopping | None = None,
) -> None:
    """Write the tables of a run from its works; the model says how these are cut."""
    indexes = {
        split.name: SumIndex.of(scored_sequences(split, audit.sequences))
        for split in task.evaluated
    }
    results, gaps, contrasts = tabulate(
        CellFiles(run, plan(proxies, model, list(indexes)), indexes),
        describe_proxies(proxies),
        {split.name: split.role for split in task.evaluated},
        reference=task.reference.name,
        learnt=audit.learnt,
        thresholds=audit.thresholds,
        floor=_floor(run),
        stopping=stopping,
    )
    write_table(run.path / "contrasts.parquet", contrasts)
    write_table(run.path / "gaps.parquet", gaps)
    write_table(run.path / "results.parquet", results)


def _floor(run: Run) -> dict[str, float]:
    """What rounding alone does to each metric, in the worst of the seeds; empty if not measured."""
    found = [read_json(run.seed(seed) / "noise.json", dict)["floor"] for seed in run.spec["seeds"]]
    floors = [{k: v for k, v in f.items() if k in all_metrics()} for f in found if f]
    return {
        metric: find_metric(metric).worst([f[metric] for f in floors])
        for metric in (floors[0] if floors else ())
    }


def report_run(run: Run, watch: Watch) -> None:
    """Write `checks.json`, and the report."""
    noise = [read_json(run.seed(seed) / "noise.json", dict) for seed in run.spec["seeds"]]
    write_json(run.path / "checks.json", claims.self_checks(run.results, noise))
    watch(Event("report", 0, 1))
    report.render(run.path)
    watch(Event("report", 1, 1))
