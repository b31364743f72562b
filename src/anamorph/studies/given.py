"""The audit of a model that somebody has, into a run folder: fit → audit → results → report.

Its steps are those of `anamorph.studies.steps`, without the training.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from anamorph.auditing.audit import check_audit, learnt_of, require_sizes, with_identity
from anamorph.auditing.engine import Settings
from anamorph.auditing.samples import few_sequences
from anamorph.auditing.works import Auditor
from anamorph.errors import AnamorphError
from anamorph.faithfulness.confidence import PRIOR_CORRELATION
from anamorph.faithfulness.estimates import Stopping
from anamorph.faithfulness.gaps import Thresholds
from anamorph.models.base import Model
from anamorph.models.fingerprint import probe_logits
from anamorph.models.huggingface.load import load_pretrained
from anamorph.models.huggingface.model import HuggingFace
from anamorph.paper.choices import choices_of_given
from anamorph.progress import Watch, ignore
from anamorph.runs.folder import Run, write_json
from anamorph.runs.opening import check_same, open_run
from anamorph.simplifications import Spec, Sweep, check_readable, sweep
from anamorph.studies.specification import AuditOptions, AuditSpec
from anamorph.studies.steps import (
    audit_seed,
    fingerprints,
    fit_seed,
    measure_noise,
    report_run,
    score_heads,
    tabulate_run,
)
from anamorph.tasks import Task
from anamorph.tasks.text.task import text_task

BATCH_TOKENS = 1_024  # of real language models, whose blocks are wide


def audit_given(
    model: Model,
    task: Task,
    simplify: Spec | Sequence[Spec],
    out: Path | str,
    *,
    name: str = "model",
    by: Sweep = "head",
    sequences: int = 1000,
    fit_sequences: int = 200,
    until: float | None = None,
    correlation: float = PRIOR_CORRELATION,
    learnt: float | None = None,
    batch_tokens: int = BATCH_TOKENS,
    thresholds: Thresholds | None = None,
    source: Mapping[str, Any] | None = None,
    watch: Watch = ignore,
) -> Run:
    """Fit simplifications, put them into a given model, compare on every split, and report.

    Args:
        model: the original, such as a `HuggingFace` or a `HookedModel`.
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
        learnt: accuracy on the reference that the model must be above for verdicts on it to mean
            anything; what the task says by default (`anamorph.auditing.audit.learnt_of`).
        batch_tokens: tokens a batch; numbers differ by rounding alone.
        thresholds: where the lines between verdicts are drawn.
        source: options from which the model and the data can be loaded again, for the record.
        watch: told of progress.

    Raises:
        AnamorphError: if model, data and proxies do not fit together; or `out` holds something
            else (numbers of other weights or other data included, which are named), is being
            worked on, or cannot be written to; then nothing is lost.
    """
    if until is not None and not 0 < until < 1:
        raise AnamorphError(f"until must be a width between 0 and 1; got {until}.")
    if not 0 < correlation <= 1:
        raise AnamorphError(f"correlation must lie above 0 and at most at 1; got {correlation}.")
    require_sizes(batch_tokens=(batch_tokens, 1))
    simplify = [simplify] if isinstance(simplify, Spec) else list(simplify)
    proxies = with_identity(sweep(simplify, model.sites, by))
    check_readable(proxies)
    models = check_audit(model, task, proxies)
    how = AuditSpec.of(
        {
            "sequences": sequences,
            "fit_sequences": fit_sequences,
            "learnt": learnt_of(task) if learnt is None else learnt,
            "thresholds": thresholds or Thresholds(),
        },
        "the arguments",
    )
    options = {"until": until, "correlation": correlation, "batch_tokens": batch_tokens}
    spec: dict[str, Any] = {
        "study": task.name,
        "preset": None,
        "task": dict(task.spec),
        "model": {"name": name, **model.describe()},
        "training": None,
        "simplify": [str(s) for s in simplify],
        "audit": {**how.model_dump(mode="json"), **options, "by": by},
        "seeds": [0],
        "threads": torch.get_num_threads(),
        "device": str(model.device),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "source": source,
        "fingerprints": {
            "weights": _weights(model),
            "logits": probe_logits(model, few_sequences(task, model)),
            **fingerprints(task, proxies, models),
        },
    }
    spec["choices"] = [*choices_of_given(spec), *task.about.choices]
    spec["about"] = task.about.describe()
    stopping = Stopping(until, correlation) if until is not None else None
    with open_run(out, spec) as run:
        if run.complete:
            return run
        with model.session():
            fitted = fit_seed(run, how, task, model, proxies, 0, watch)
            settings = Settings(batch_tokens, threads=run.spec["threads"], stopping=stopping)
            auditor = Auditor(model, task, proxies, fitted, how.sequences, settings)
            audit_seed(run, auditor, 0, watch)
            measure_noise(run, task, model, 0, watch, batch_tokens)
            score_heads(run, task, model, proxies, 0, watch, batch_tokens)
        tabulate_run(run, how, task, model, proxies, stopping)
        write_json(run.path / "claims.json", [])
        report_run(run, watch)
    return run


def _weights(model: Model) -> dict[str, str]:
    """The digests of a model's weights.

    Raises:
        AnamorphError: if it has none.
    """
    found = model.fingerprint()
    if not found:
        raise AnamorphError(
            f"{type(model).__name__} has no fingerprint(), so that a run folder could not tell its "
            "numbers from those of another model; define it, or use am.audit."
        )
    return found


def load_given(options: AuditOptions) -> tuple[HuggingFace, Task]:
    """The model and the task that the command line or a TOML file names.

    Raises:
        AnamorphError: as `load_pretrained` and `text_task`.
    """
    assert options.model is not None
    model, tokenizer = load_pretrained(options.model, hub=options.hub)
    task = text_task(
        options.data,
        tokenizer,
        length=options.length,
        packing=options.packing,
        sequences=options.sequences,
        fit_on=options.fit_on,
        fit_sequences=options.fit_sequences,
        text_field=options.text_field,
        spans_field=options.spans_field,
        masked=options.masked,
        vocabulary=model.vocabulary,
    )
    return model, task


def audit_loaded(model: Model, task: Task, options: AuditOptions, watch: Watch = ignore) -> Run:
    """The audit of what `load_given` gives, as the same options ask for it.

    Raises:
        AnamorphError: as `audit_given`.
    """
    assert options.model is not None
    return audit_given(
        model,
        task,
        options.simplify,
        options.out,
        name=Path(options.model).name,
        by=options.by,
        sequences=options.sequences,
        fit_sequences=options.fit_sequences,
        until=options.until,
        correlation=options.correlation,
        source=options.source(),
        watch=watch,
    )


def audit_again(run: Run, simplify: Sequence[str], out: Path | str, watch: Watch = ignore) -> Run:
    """Audit the model and data of a run that was given them, with other simplifications.

    Raises:
        AnamorphError: if they cannot be loaded again, or are not what they were; then nothing is
            written.
    """
    if run.spec.get("source") is None:
        raise AnamorphError(
            f"{run.path} audits a model that was given in Python ({run.spec['model']['name']}), "
            "and does not hold it. Call am.audit_given with that model and its task."
        )
    options = AuditOptions.read(
        None, {**run.spec["source"], "simplify": list(simplify), "out": str(out)}
    )
    model, task = load_given(options)
    check_same(run, _weights(model), task)
    return audit_loaded(model, task, options, watch)
