"""The main job, from nothing to a report: train → fit → audit → results → report.

`carry_out` is the pipeline, and reads from top to bottom. The functions above it say for whom:
`run_study` trains the models, `audit_given` is given one, `audit_study` takes those of a run.
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from functools import partial
from typing import Any

import torch

from anamorph.auditing.audit import Simplify
from anamorph.auditing.local import Engine
from anamorph.auditing.options import AuditOptions
from anamorph.errors import AnamorphError, require
from anamorph.faithfulness.confidence import PRIOR_CORRELATION
from anamorph.faithfulness.gaps import Thresholds
from anamorph.files import write_json
from anamorph.machine.devices import Matmul, matmul_precision
from anamorph.machine.process import processors
from anamorph.machine.threads import torch_threads
from anamorph.machine.workers import apart
from anamorph.models.base import Model
from anamorph.progress import Watch, ignore
from anamorph.progress.watching import watching
from anamorph.registered import Plugin, loaded_plugins
from anamorph.report import check_figures
from anamorph.report.opened import OpenedRun
from anamorph.runs.folder import Run, load_run
from anamorph.runs.opening import open_run, sweep
from anamorph.simplifications import Sweep
from anamorph.store import Address
from anamorph.studies.plugins import load_again
from anamorph.studies.sources import GivenStudy, Study, TrainedStudy, check_kept
from anamorph.studies.specification import AgainSpec, GivenSpec, StudySpec
from anamorph.studies.spread import spread
from anamorph.studies.steps import (
    SeedAudit,
    plan_run,
    report_run,
    tabulate_run,
    told,
    write_examples,
)
from anamorph.tasks import Task


def run_study(
    spec: StudySpec,
    out: Address | str,
    *,
    preset: str | None = None,
    workers: int | None = 1,
    figures: Sequence[str] | None = None,
    engine: Engine | None = None,
    watch: Watch | None = None,
) -> OpenedRun:
    """Do a whole study, or go on with one, in a run folder.

    Args:
        spec: what to do.
        out: the run folder; see `anamorph.runs.folder`.
        preset: where the specification came from, for the record.
        workers: seeds trained and audited at a time, each in a process of its own if it is more
            than one; None stands for as many as the processors allow. The numbers do not depend
            on it. Other processes know what installed packages and plugins (`load_plugin`) add, not
            what the calling script defines.
        figures: names of the still figures to write, such as `verdicts` or `gap*`; all by default,
            none of an empty list. The page has all charts in any case, and no number depends on it.
        engine: who carries out the jobs, such as a `RayEngine`; this process by default. Results do
            not depend on it.
        watch: told of progress; by default bars in a notebook, and nothing elsewhere.

    The first seed that fails ends the study at once; what was finished is kept.

    Raises:
        AnamorphError: if the specification does not fit the task or the model, or `out` holds
            something else, or cannot be written to; or if a process of a seed is killed.
    """
    if workers is not None:
        require("workers", workers, whole=True, least=1)
    check_figures(figures)
    with watching(watch) as watched:
        study = TrainedStudy(spec, preset, watch=watched)
        return carry_out(study, out, workers, watched, figures, engine)


def train_study(
    spec: StudySpec, out: Address | str, *, preset: str | None = None, watch: Watch | None = None
) -> OpenedRun:
    """Only train the models of a study; `run_study` with the same arguments goes on from there."""
    with watching(watch) as watched:
        return _train(TrainedStudy(spec, preset, watch=watched), out, watched)


def _train(study: TrainedStudy, out: Address | str, watch: Watch) -> OpenedRun:
    spec = study.spec
    with (
        matmul_precision(spec.matmul),
        open_run(out, study.describe()) as run,
        torch_threads(spec.threads),
    ):
        for seed in spec.seeds:
            study.model(run, seed, watch)
    return OpenedRun(run.path, run.spec)


def audit_given(
    model: Model,
    task: Task,
    simplify: Simplify,
    out: Address | str,
    *,
    name: str = "model",
    by: Sweep = "all",
    sequences: int = 1000,
    fit_sequences: int = 1000,
    until: float | None = None,
    correlation: float = PRIOR_CORRELATION,
    learnt: float | None = None,
    batch_tokens: int | None = None,
    stack_memory: int | None = None,
    thresholds: Thresholds | None = None,
    source: Mapping[str, Any] | None = None,
    figures: Sequence[str] | None = None,
    engine: Engine | None = None,
    watch: Watch | None = None,
) -> OpenedRun:
    """As `anamorph.audit`, into a run folder with a report; a stopped audit can go on.

    Args:
        model: the original, such as a `HuggingFace` or a `HookedModel`.
        task: its data, such as `anamorph.tasks.text_task` makes.
        simplify: spec strings or attachments; a list value stands for one proxy each.
        out: the run folder; the same call goes on with what is there.
        name: what the model is called in the report.
        by: one proxy a `head`, one a `layer`, or `all` sites of a spec at once.
        sequences: scored sequences of each split, at most.
        fit_sequences: sequences of `train` that are fitted on, at most.
        until: stop each cell when a confidence sequence of its `same_prediction` is so narrow.
        correlation: of the positions of a sequence, assumed with `until` before any disagreement
            shows what it is, 0.5 by default; see `anamorph.faithfulness.confidence`.
        learnt: accuracy on the reference that the model must be above for verdicts on it to mean
            anything; what the task says by default (`anamorph.auditing.options.learnt_of`).
        batch_tokens: tokens a batch; what suits the model and its device by default. Numbers differ
            by rounding alone.
        stack_memory: bytes for the widest tensor of proxies that run together; likewise.
        thresholds: where the lines between verdicts are drawn.
        source: options from which the model and the data can be loaded again, for the record.
        figures: names of the still figures to write, such as `verdicts` or `gap*`; all by default,
            none of an empty list. The page has all charts in any case, and no number depends on it.
        engine: who carries out the jobs, such as a `RayEngine`; this process by default. Results do
            not depend on it.
        watch: told of progress; by default bars in a notebook, and nothing elsewhere.

    Raises:
        AnamorphError: if model, data and proxies do not fit together; or `out` holds something
            else (numbers of other weights or other data included, which are named), is being
            worked on, or cannot be written to; then nothing is lost.
    """
    options = AuditOptions(
        by=by,
        sequences=sequences,
        fit_sequences=fit_sequences,
        until=until,
        correlation=correlation,
        learnt=learnt,
        batch_tokens=batch_tokens,
        stack_memory=stack_memory,
        thresholds=thresholds or Thresholds(),
    )
    study = GivenStudy(model, task, simplify, options, name, source)
    return carry_out(study, out, watch=watch, figures=figures, engine=engine)


def audit_files(
    spec: GivenSpec,
    out: Address | str,
    *,
    figures: Sequence[str] | None = None,
    engine: Engine | None = None,
    watch: Watch = ignore,
) -> OpenedRun:
    """Audit a model and data that files hold, into a run folder; see `audit_given`.

    Args:
        spec: which, and how.
        out: the run folder.
        figures: as for `run_study`.
        engine: who carries out the jobs, such as a `RayEngine`; this process by default. Results do
            not depend on it.
        watch: told of progress, reading included.

    Raises:
        AnamorphError: as `load_pretrained`, `text_task` and `audit_given`.
    """
    with told(watch, "model and data"):
        study = GivenStudy.load(spec)
    return carry_out(study, out, watch=watch, figures=figures, engine=engine)


def audit_study(
    source: Address | str,
    simplify: Sequence[str],
    out: Address | str,
    *,
    device: str = "auto",
    matmul: Matmul | None = None,
    workers: int | None = 1,
    figures: Sequence[str] | None = None,
    engine: Engine | None = None,
    watch: Watch | None = None,
) -> OpenedRun:
    """Audit the models of a run with other simplifications, into a run folder of its own.

    Args:
        source: the run folder.
        simplify: spec strings.
        out: the run folder for the results.
        device: where models compute; see `anamorph.machine.devices.find_device`.
        matmul: how float32 matrices are multiplied; None leaves it to the process.
        workers: as for `run_study`.
        figures: names of the still figures to write, such as `verdicts` or `gap*`; all by default,
            none of an empty list. The page has all charts in any case, and no number depends on it.
        engine: who carries out the jobs, such as a `RayEngine`; this process by default. Results do
            not depend on it.
        watch: told of progress; by default bars in a notebook, and nothing elsewhere.

    Raises:
        AnamorphError: as `run_study` or `audit_given`, and if a model of the source is missing or
            damaged; then nothing is written.
    """
    check_figures(figures)
    asked = AgainSpec(run=str(source), simplify=tuple(simplify), device=device, matmul=matmul)
    with watching(watch) as watched:
        return carry_out(study_again(asked, watched), out, workers, watched, figures, engine)


def study_again(asked: AgainSpec, watch: Watch = ignore) -> TrainedStudy | GivenStudy:
    """The study of the models of a run with other simplifications; errors as of `audit_study`."""
    run = load_run(asked.run)
    kind: type[TrainedStudy | GivenStudy] = TrainedStudy if run.trained else GivenStudy
    return kind.again(run, asked, watch)


def carry_out(
    study: Study,
    out: Address | str,
    workers: int | None = 1,
    watch: Watch | None = None,
    figures: Sequence[str] | None = None,
    engine: Engine | None = None,
) -> OpenedRun:
    """Do a study, or what is left of it, in a run folder.

    Args:
        study: what to do.
        out: the run folder.
        workers: as for `run_study`; a model that was given stays in this process.
        watch: told of progress; by default bars in a notebook, and nothing elsewhere.
        figures: names of the still figures to write, such as `verdicts` or `gap*`; all by default,
            none of an empty list. The page has all charts in any case, and no number depends on it.
        engine: as for `run_study`.

    Raises:
        AnamorphError: as `run_study` and `audit_given`.
    """
    check_figures(figures)
    with (
        watching(watch) as watched,
        matmul_precision(study.matmul),
        engine or nullcontext(),  # first: what cannot be reached leaves no folder behind
        open_run(out, study.describe()) as run,
    ):
        if run.complete:
            check_kept(run)
            return OpenedRun(run.path, run.spec)
        plan_run(run, study)
        if engine is None:
            _each_seed(study, run, workers, watched)
        else:
            spread(study, run, engine, watched)
            sweep(run.path)
        with told(watched, "tables"):
            tabulate_run(run, study)
        with told(watched, "worst examples"):
            write_examples(run, study, watched)
        with told(watched, "pictures and claims"):
            write_json(run.path / "claims.json", study.conclude(run))
        with told(watched, "report"):
            report_run(run, figures)
    return OpenedRun(run.path, run.spec)


def _each_seed(study: Study, run: Run, workers: int | None, watch: Watch) -> None:
    workers = workers_of(study, workers)
    if isinstance(study, TrainedStudy) and workers > 1:
        each = partial(_elsewhere, study.spec, study.source, run, loaded_plugins())
        calls = [partial(each, seed) for seed in study.seeds]
        with closing(apart(calls, workers, watch)) as done:
            for _ in done:
                pass
        return
    for seed in study.seeds:
        _one_seed(study, run, seed, watch)


def workers_of(study: Study, workers: int | None) -> int:
    """How many seeds of a study are worked on at a time, asked for so many, or as many as fit."""
    if not isinstance(study, TrainedStudy) or len(study.seeds) == 1:
        return 1
    if workers is None:
        on_cpu = study.shape.device.type == "cpu"  # a device has one master
        workers = max(1, processors() // study.spec.threads) if on_cpu else 1
    return min(workers, len(study.seeds))


def _one_seed(study: Study, run: Run, seed: int, watch: Watch) -> None:
    """Train, fit and audit one model; an error says which, if it is trained here."""
    try:
        with torch_threads(study.threads) if study.threads else nullcontext():
            SeedAudit(run, study, study.model(run, seed, watch), seed, watch).do()
    except AnamorphError as error:
        if isinstance(study, GivenStudy):
            raise
        raise type(error)(f"Seed {seed}: {error}") from error


def _elsewhere(
    spec: StudySpec,
    source: Run | None,
    run: Run,
    plugins: Sequence[Plugin],
    seed: int,
    watch: Watch,
) -> None:
    """`_one_seed` in a process of its own, which loads the plugins that the caller has loaded."""
    load_again(plugins)
    with warnings.catch_warnings(action="ignore"):  # what the study said already
        try:
            study = TrainedStudy(spec, source=source)
        except AnamorphError as error:  # it went well where the study was begun
            raise AnamorphError(
                f"In a worker process: {error} Workers know what is installed and what plugins "
                "register, not what a script does; put it into a file and load that with "
                "am.load_plugin, offer it by an entry point, or give workers=1."
            ) from error
    torch.set_float32_matmul_precision(run.spec["matmul_precision"])  # the caller's
    _one_seed(study, run, seed, watch)
