"""The main job, from nothing to a report: task → train → fit → audit → results → report.

`run_study` reads from top to bottom. Each step leaves a file and is passed over if the file is
there, so that the same call goes on where a killed one stopped.
"""

import shutil
import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from anamorph.analysis import views
from anamorph.auditing.another import check_models
from anamorph.auditing.audit import learnt_of, simplified, with_identity
from anamorph.auditing.engine import Settings
from anamorph.auditing.works import Auditor
from anamorph.errors import AnamorphError
from anamorph.files import replacing
from anamorph.machine.process import processors
from anamorph.machine.threads import torch_threads
from anamorph.machine.workers import apart
from anamorph.models.decoder import Decoder
from anamorph.paper import claims
from anamorph.paper.choices import choices
from anamorph.progress import Event, Watch, ignore
from anamorph.runs.folder import Run, load_run, write_json
from anamorph.runs.opening import check_same, open_run
from anamorph.simplifications import ProxySpec, Sweep, check_proxies, check_readable, sweep
from anamorph.studies.given import audit_again
from anamorph.studies.specification import AuditSpec, StudySpec
from anamorph.studies.steps import (
    FINGERPRINTS,
    audit_seed,
    check_weights,
    fingerprints,
    fit_seed,
    keep_weights,
    measure_noise,
    report_run,
    score_heads,
    tabulate_run,
)
from anamorph.tasks import Task, load_task
from anamorph.tasks.batches import collate
from anamorph.training.train import default_model, resolved, train


def run_study(
    spec: StudySpec,
    out: Path | str,
    *,
    preset: str | None = None,
    workers: int | None = 1,
    watch: Watch = ignore,
) -> Run:
    """Do a whole study, or go on with one, in a run folder.

    Args:
        spec: what to do.
        out: the run folder; see `anamorph.runs.folder`.
        preset: where the specification came from, for the record.
        workers: seeds trained and audited at a time, each in a process of its own if it is more
            than one; None stands for as many as the processors allow. The numbers do not depend
            on it. Other processes know the tasks and simplifications of installed packages, not
            what the calling script defines.
        watch: told of progress.

    The first seed that fails ends the study at once; what was finished is kept.

    Raises:
        AnamorphError: if the specification does not fit the task or the model, or `out` holds
            something else, or cannot be written to; or if a process of a seed is killed.
    """
    if workers is not None and workers < 1:
        raise AnamorphError(f"A study needs at least 1 worker; got {workers}.")
    task = load_task(watch=watch, **spec.task)
    proxies = check(spec, task)
    with open_run(out, describe(spec, task, proxies, preset)) as run:
        _study(spec, run, task, proxies, workers, watch)
    return run


def _study(
    spec: StudySpec,
    run: Run,
    task: Task,
    proxies: Sequence[ProxySpec],
    workers: int | None,
    watch: Watch,
) -> None:
    """What is left to do of a run that is open."""
    if run.complete:
        for seed in spec.seeds:
            if (run.model(seed)).exists():
                check_weights(run, Decoder.load(run.model(seed)), seed)
        return
    _each_seed(spec, run, task, workers, watch)
    learnt = run.spec["audit"]["learnt"]
    tabulate_run(
        run, spec.audit.model_copy(update={"learnt": learnt}), task, untrained(spec, task), proxies
    )
    views.write(run, task, spec.audit.fit_sequences)
    measured = claims.measure(
        run.results,
        run.gaps,
        run.spec,
        run.heads,
        run.contrasts,
        run.matching,
    )
    write_json(run.path / "claims.json", measured)
    report_run(run, watch)


def train_study(
    spec: StudySpec, out: Path | str, *, preset: str | None = None, watch: Watch = ignore
) -> Run:
    """Only train the models of a study; `run_study` with the same arguments goes on from there."""
    task = load_task(watch=watch, **spec.task)
    proxies = check(spec, task)
    with (
        open_run(out, describe(spec, task, proxies, preset)) as run,
        torch_threads(spec.threads),
    ):
        for seed in spec.seeds:
            train_seed(spec, run, task, seed, watch)
    return run


def audit_study(
    source: Path | str,
    simplify: Sequence[str],
    out: Path | str,
    *,
    workers: int | None = 1,
    watch: Watch = ignore,
) -> Run:
    """Audit the models of a run with other simplifications, into a run folder of its own.

    Raises:
        AnamorphError: as `run_study` or `audit_given`, and if a model of the source is missing or
            damaged; then nothing is written.
    """
    trained = load_run(source)
    if trained.spec["training"] is None:
        return audit_again(trained, simplify, out, watch)
    replaced = {"simplify": list(simplify), "each_layer": [], "each_head": []}
    known = {key: trained.spec[key] for key in StudySpec.model_fields if key not in replaced}
    # A run of an earlier version also says how its intervals were resampled.
    known["audit"] = {k: v for k, v in known["audit"].items() if k in AuditSpec.model_fields}
    spec = StudySpec.of(known | replaced, f"{source} and --simplify")
    task = load_task(watch=watch, **spec.task)
    proxies = check(spec, task)
    for seed in spec.seeds:
        if not (trained.model(seed)).exists():  # written last
            raise AnamorphError(
                f"{source} has no model for seed {seed}: its training did not come to its end. "
                "Give its command again first."
            )
        check_weights(trained, Decoder.load(trained.model(seed)), seed)
    check_same(trained, None, task)
    with open_run(out, describe(spec, task, proxies, None)) as run:
        for seed in spec.seeds:
            for name in ("history.parquet", FINGERPRINTS, run.model(seed).name):
                there = (trained.seed(seed) / name).exists()
                if there and not (run.seed(seed) / name).exists():
                    with replacing(run.seed(seed) / name) as temporary:
                        shutil.copyfile(trained.seed(seed) / name, temporary)
        _study(spec, run, task, proxies, workers, watch)
    return run


def check(spec: StudySpec, task: Task) -> list[ProxySpec]:
    """The proxies of a study, the identity first, tried on an untrained model.

    Raises:
        AnamorphError: if one does not fit, before any time is spent on training.
    """
    model = untrained(spec, task)
    swept: list[ProxySpec] = []
    for specs, by in ((spec.each_layer, "layer"), (spec.each_head, "head")):
        swept += sweep(specs, model.sites, cast(Sweep, by))
    proxies = list(dict.fromkeys(with_identity([*spec.simplify, *swept])))
    if len(proxies) == 1:
        raise AnamorphError(
            "The specification has no simplification, so there is nothing to compare with the "
            "model; give at least one, such as 'svd(rank=[1,2,4])@1.*.{query,key}'."
        )
    check_readable(proxies)
    check_proxies(model, simplified(proxies), collate(task.train, np.arange(1)))
    return proxies


def untrained(spec: StudySpec, task: Task) -> Decoder:
    """A model of the study's shape, whose weights mean nothing."""
    with torch.random.fork_rng(devices=[]):
        return Decoder(default_model(task, **spec.model)).eval()


def describe(
    spec: StudySpec, task: Task, proxies: Sequence[ProxySpec], preset: str | None
) -> dict[str, Any]:
    """What `spec.json` says, besides the environment: everything resolved."""
    values: dict[str, Any] = spec.model_dump(mode="json")
    values["task"] = dict(task.spec)
    values["audit"]["learnt"] = learnt_of(task) if spec.audit.learnt is None else spec.audit.learnt
    values["training"] = asdict(resolved(spec.training))
    values["model"] = default_model(task, **spec.model).__dict__
    values["choices"] = [*choices(values), *task.about.choices]
    values["about"] = task.about.describe()
    models = check_models(proxies, untrained(spec, task), task)
    values["fingerprints"] = fingerprints(task, proxies, models)
    values["device"] = "cpu"
    values["matmul_precision"] = torch.get_float32_matmul_precision()
    return {"study": task.name, "preset": preset, **values}


def run_seed(spec: StudySpec, run: Run, task: Task, seed: int, watch: Watch) -> None:
    """Train, fit and audit one model.

    Raises:
        AnamorphError: names the seed.
    """
    try:
        with torch_threads(spec.threads):
            _run_seed(spec, run, task, seed, watch)
    except AnamorphError as error:
        raise AnamorphError(f"Seed {seed}: {error}") from error


def _run_seed(spec: StudySpec, run: Run, task: Task, seed: int, watch: Watch) -> None:
    proxies = check(spec, task)
    model = train_seed(spec, run, task, seed, watch)
    fitted = fit_seed(run, spec.audit, task, model, proxies, seed, watch)
    settings = Settings(batches=spec.threads, threads=run.spec["threads"])
    auditor = Auditor(model, task, proxies, fitted, spec.audit.sequences, settings)
    audit_seed(run, auditor, seed, watch)
    measure_noise(run, task, model, seed, watch)
    score_heads(run, task, model, proxies, seed, watch)


def train_seed(spec: StudySpec, run: Run, task: Task, seed: int, watch: Watch) -> Decoder:
    """The trained model of a seed; trains it unless it lies there already."""
    path = run.model(seed)
    if path.exists():
        return Decoder.load(path).eval()
    model, _ = train(
        task,
        config=spec.training,
        model=default_model(task, **spec.model),
        seed=seed,
        out=run.seed(seed),
        watch=lambda p: watch(
            Event(
                f"seed {seed}: training",
                p.step,
                p.steps,
                f"{p.tokens_per_second / 1000:.0f}k tokens/s, loss {p.loss:.3f} bits",
            )
        ),
    )
    keep_weights(run, model, seed)
    return model.eval()


def _each_seed(spec: StudySpec, run: Run, task: Task, workers: int | None, watch: Watch) -> None:
    if workers is None:
        workers = max(1, processors() // spec.threads)
    if min(workers, len(spec.seeds)) == 1:
        for seed in spec.seeds:
            run_seed(spec, run, task, seed, watch)
        return
    calls = [partial(_work, spec, run, seed) for seed in spec.seeds]
    with closing(apart(calls, workers, watch)) as done:
        for _ in done:
            pass


def _work(spec: StudySpec, run: Run, seed: int, watch: Watch) -> None:
    """`run_seed` in a process of its own."""
    with warnings.catch_warnings(action="ignore"):  # what the study said already
        try:
            task = load_task(**spec.task)
            check(spec, task)
        except AnamorphError as error:  # it went well where the study was begun
            raise AnamorphError(
                f"In a worker process: {error} Workers know what is installed, not what a script "
                "registers; offer it by an entry point, or give workers=1."
            ) from error
    torch.set_float32_matmul_precision(run.spec["matmul_precision"])  # the caller's
    run_seed(spec, run, task, seed, watch)
