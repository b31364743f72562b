"""The steps of every study, whoever trained its models.

Each leaves a file and is passed over if the file is there, so that the same call goes on where a
killed one stopped.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from anamorph import report
from anamorph.analysis.checks import self_checks, worst_floor
from anamorph.analysis.edited_heads import edited_head
from anamorph.analysis.head_scores import head_scores
from anamorph.auditing.audit import describe_proxies, fit_on_task, simplified
from anamorph.auditing.noise import noise_floor, rounding
from anamorph.auditing.samples import few_sequences, scored_sequences
from anamorph.auditing.works import Auditor, Work, plan
from anamorph.errors import AnamorphError
from anamorph.faithfulness.metrics import metric_names
from anamorph.faithfulness.sums import SumIndex
from anamorph.faithfulness.tables import tabulate
from anamorph.files import write_json, write_table
from anamorph.models.base import Model
from anamorph.models.fingerprint import Identity
from anamorph.progress import Event, Watch
from anamorph.runs.cells import (
    CellFiles,
    Origin,
    check_work,
    digest,
    digest_of_file,
    write_work,
)
from anamorph.runs.folder import Run, read_json
from anamorph.simplifications import FittedProxies
from anamorph.studies.sources import Study, keep_weights
from anamorph.tasks.base import CANDIDATES


@dataclass(frozen=True)
class SeedAudit:
    """The work on one model of a run: fits, sums of all cells, noise floor, scores of heads.

    Attributes:
        run: where everything is kept.
        study: what is to be done.
        model: in inference mode.
        seed: of the model; 0 if it was given.
        watch: told of progress.
    """

    run: Run
    study: Study
    model: Model
    seed: int
    watch: Watch

    def do(self) -> None:
        """Whatever is left to do.

        Raises:
            AnamorphError: if what is there comes from another model or other data, a number is not
                finite, or the model changes meanwhile.
        """
        with self.model.session():
            self.audit(self.fit())
            self.measure_noise()
            self.score_heads()

    def fit(self) -> FittedProxies:
        """The fitted proxies; fits them unless they are there already."""
        path, proxies = self._fits, self.study.proxies
        batch = few_sequences(self.study.task, self.model)
        identity = Identity.of(self.model, batch)
        task, sequences = self.study.task, self.study.options.fit_sequences
        known = self.run.spec["fingerprints"]["data"]
        on = {task.train.name, *(name for proxy in proxies for name in proxy.on)}
        weights = keep_weights(self.run, self.model, self.seed)
        origin = {
            "weights": weights,
            "data": digest(*(known[name] for name in sorted(on)), sequences),
        }
        if not path.exists():
            step = f"fitting {sum(bool(p.attachments) for p in simplified(proxies))} proxies"
            self._tell(step, 0, 1)
            found = fit_on_task(self.model, proxies, task, sequences)
            identity.require_same(self.model, batch)
            found.from_origin(origin).save(path)
            self._tell(step, 1, 1)
        fitted = FittedProxies.load(path)  # as whoever goes on with the run will have them
        if fitted.origin != origin:
            raise AnamorphError(
                f"{path} was fitted to another model or other data than there are now; delete it, "
                "and the same command fits again."
            )
        return fitted

    def audit(self, fitted: FittedProxies) -> None:
        """Write the works that are not there yet."""
        run, study, model = self.run, self.study, self.model
        auditor = Auditor(
            model,
            study.task,
            study.proxies,
            fitted,
            study.options.sequences,
            study.settings(run),
        )
        batch, names = few_sequences(study.task, model), [s.name for s in study.task.evaluated]
        identity = Identity.of(model, batch)
        if digest(identity.weights) != fitted.origin["weights"]:
            raise AnamorphError("The model was changed after simplifications were fitted to it.")
        fits = digest_of_file(self._fits)
        done = dict.fromkeys(names, 0)  # cells of each split
        for work in plan(study.proxies, model, names):
            path = run.work(self.seed, work.split, work.number)
            origin = self._origin(auditor, work, fits)
            if path.exists():
                check_work(path, origin)
            else:
                sums = auditor.execute(work, self._part(work, done[work.split]))
                identity.require_same(model, batch)
                auditor.require_same(work, study.others)
                write_work(path, sums, origin)
            done[work.split] += len(work.proxies)

    def _origin(self, auditor: Auditor, work: Work, fits: str) -> Origin:
        """What the sums of a work come from."""
        known, version = self.run.spec["fingerprints"], self.run.spec["anamorph"]
        models = [known["models"][text] for text in work.proxies if text in known["models"]]
        metrics = [known["metrics"]] if known.get("metrics") else []
        options = replace(auditor.settings, threads=None)
        return Origin(
            weights=auditor.fitted.origin["weights"],
            simplifications=digest(models) if models else fits,
            data=digest(known["data"][work.split], known["data"][CANDIDATES]),
            options=digest(version, auditor.sequences, options, metric_names(), *metrics),
        )

    def measure_noise(self) -> None:
        """Write `noise.json`: the noise floor, and what batching alone does."""
        path, task = self.run.seed(self.seed) / "noise.json", self.study.task
        if path.exists():
            return
        self._tell("noise floor", 0, 1)
        settings = self.study.settings(self.run)
        floor = noise_floor(
            self.model, task, batch_tokens=settings.batch_tokens, threads=settings.threads
        )
        write_json(path, {"floor": floor, "rounding": rounding(self.model, task)})
        self._tell("noise floor", 1, 1)

    def score_heads(self) -> None:
        """Write `heads.parquet`, if some proxy edits a single head."""
        path, sites = self.run.seed(self.seed) / "heads.parquet", self.model.sites
        if path.exists() or not any(edited_head(p.sites, sites) for p in self.study.proxies):
            return
        self._tell("head scores", 0, 1)
        tokens = self.study.settings(self.run).batch_tokens
        scores = head_scores(self.model, self.study.task.reference, batch_tokens=tokens)
        write_table(path, scores.select(pl.lit(self.seed, pl.Int64).alias("seed"), pl.all()))
        self._tell("head scores", 1, 1)

    @property
    def _fits(self) -> Path:
        return self.run.seed(self.seed) / "simplifications.safetensors"

    def _tell(self, step: str, done: int, total: int) -> None:
        self.watch(Event(f"seed {self.seed}: {step}", done, total))

    def _part(self, work: Work, before: int) -> Callable[[int, int], None]:
        """Tells of a work as a part of all cells of its split."""
        step, some, cells = f"audit on {work.split}", len(work.proxies), len(self.study.proxies)
        return lambda done, total: self._tell(step, before + some * done // total, cells)


def tabulate_run(run: Run, study: Study) -> None:
    """Write the tables of a run from its works."""
    task, options = study.task, study.options
    indexes = {
        split.name: SumIndex.of(scored_sequences(split, options.sequences))
        for split in task.evaluated
    }
    results, gaps, contrasts = tabulate(
        CellFiles(run, plan(study.proxies, study.shape, list(indexes)), indexes),
        describe_proxies(study.proxies),
        {split.name: split.role for split in task.evaluated},
        reference=task.reference.name,
        learnt=options.learnt,
        thresholds=options.thresholds,
        floor=worst_floor(_noise(run)),
        stopping=options.stopping,
    )
    write_table(run.path / "contrasts.parquet", contrasts)
    write_table(run.path / "gaps.parquet", gaps)
    write_table(run.path / "results.parquet", results)


def _noise(run: Run) -> list[dict[str, Any]]:
    return [read_json(run.seed(seed) / "noise.json", dict) for seed in run.seeds]


def report_run(run: Run, watch: Watch) -> None:
    """Write `checks.json`, and the report."""
    write_json(run.path / "checks.json", self_checks(run.results, _noise(run)))
    watch(Event("report", 0, 1))
    report.render(run.path)
    watch(Event("report", 1, 1))
