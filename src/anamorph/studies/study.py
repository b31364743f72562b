"""The main job, from nothing to a report: train → fit → audit → results → report.

`carry_out` is the pipeline, and reads from top to bottom. The functions above it say for whom:
`run_study` trains the models, `audit_given` is given one, `audit_study` takes those of a run.
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from anamorph.auditing.audit import Simplify
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
from anamorph.report.opened import OpenedRun
from anamorph.runs.folder import Run, load_run
from anamorph.runs.opening import open_run
from anamorph.simplifications import Sweep
from anamorph.studies.sources import GivenStudy, Study, TrainedStudy, check_kept
from anamorph.studies.specification import AgainSpec, StudySpec
from anamorph.studies.steps import SeedAudit, report_run, tabulate_run, told
from anamorph.tasks import Task


def run_study(
    spec: StudySpec,
    out: Path | str,
    *,
    preset: str | None = None,
    workers: int | None = 1,
    watch: Watch = ignore,
) -> OpenedRun:
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
    if workers is not None:
        require("workers", workers, whole=True, least=1)
    return carry_out(TrainedStudy(spec, preset, watch=watch), out, workers, watch)


def train_study(
    spec: StudySpec, out: Path | str, *, preset: str | None = None, watch: Watch = ignore
) -> OpenedRun:
    """Only train the models of a study; `run_study` with the same arguments goes on from there."""
    study = TrainedStudy(spec, preset, watch=watch)
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
    out: Path | str,
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
    watch: Watch = ignore,
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
        watch: told of progress.

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
    return carry_out(study, out, watch=watch)


def audit_study(
    source: Path | str,
    simplify: Sequence[str],
    out: Path | str,
    *,
    device: str = "auto",
    matmul: Matmul | None = None,
    workers: int | None = 1,
    watch: Watch = ignore,
) -> OpenedRun:
    """Audit the models of a run with other simplifications, into a run folder of its own.

    Args:
        source: the run folder.
        simplify: spec strings.
        out: the run folder for the results.
        device: where models compute; see `anamorph.machine.devices.find_device`.
        matmul: how float32 matrices are multiplied; None leaves it to the process.
        workers: as for `run_study`.
        watch: told of progress.

    Raises:
        AnamorphError: as `run_study` or `audit_given`, and if a model of the source is missing or
            damaged; then nothing is written.
    """
    run = load_run(source)
    kind: type[TrainedStudy | GivenStudy] = TrainedStudy if run.trained else GivenStudy
    asked = AgainSpec(run=str(source), simplify=tuple(simplify), device=device, matmul=matmul)
    return carry_out(kind.again(run, asked, watch), out, workers, watch)


def carry_out(
    study: Study, out: Path | str, workers: int | None = 1, watch: Watch = ignore
) -> OpenedRun:
    """Do a study, or what is left of it, in a run folder.

    Args:
        study: what to do.
        out: the run folder.
        workers: as for `run_study`; a model that was given stays in this process.
        watch: told of progress.

    Raises:
        AnamorphError: as `run_study` and `audit_given`.
    """
    with matmul_precision(study.matmul), open_run(out, study.describe()) as run:
        if run.complete:
            check_kept(run)
            return OpenedRun(run.path, run.spec)
        _each_seed(study, run, workers, watch)
        with told(watch, "tables"):
            tabulate_run(run, study)
        with told(watch, "claims"):
            write_json(run.path / "claims.json", study.conclude(run))
        with told(watch, "report"):
            report_run(run)
    return OpenedRun(run.path, run.spec)


def _each_seed(study: Study, run: Run, workers: int | None, watch: Watch) -> None:
    if isinstance(study, TrainedStudy) and len(study.seeds) > 1:
        if workers is None:
            workers = max(1, processors() // study.spec.threads)
            workers = workers if study.shape.device.type == "cpu" else 1  # a device has one master
        if workers > 1:
            each = partial(_elsewhere, study.spec, study.source, run)
            calls = [partial(each, seed) for seed in study.seeds]
            with closing(apart(calls, workers, watch)) as done:
                for _ in done:
                    pass
            return
    for seed in study.seeds:
        _one_seed(study, run, seed, watch)


def _one_seed(study: Study, run: Run, seed: int, watch: Watch) -> None:
    """Train, fit and audit one model; an error says which, if it is trained here."""
    try:
        with torch_threads(study.threads) if study.threads else nullcontext():
            SeedAudit(run, study, study.model(run, seed, watch), seed, watch).do()
    except AnamorphError as error:
        if isinstance(study, GivenStudy):
            raise
        raise AnamorphError(f"Seed {seed}: {error}") from error


def _elsewhere(spec: StudySpec, source: Run | None, run: Run, seed: int, watch: Watch) -> None:
    """`_one_seed` in a process of its own."""
    with warnings.catch_warnings(action="ignore"):  # what the study said already
        try:
            study = TrainedStudy(spec, source=source)
        except AnamorphError as error:  # it went well where the study was begun
            raise AnamorphError(
                f"In a worker process: {error} Workers know what is installed, not what a script "
                "registers; offer it by an entry point, or give workers=1."
            ) from error
    torch.set_float32_matmul_precision(run.spec["matmul_precision"])  # the caller's
    _one_seed(study, run, seed, watch)
