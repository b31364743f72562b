"""The steps of every study, whoever trained its models.

Each leaves a file and is passed over if the file is there, so that the same call goes on where a
killed one stopped.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import polars as pl

from anamorph import report
from anamorph.analysis.checks import self_checks, worst_floor
from anamorph.analysis.edited_heads import edited_head
from anamorph.analysis.examples import examples
from anamorph.analysis.findings import Findings
from anamorph.analysis.head_scores import head_scores
from anamorph.auditing.at_sites import at_sites
from anamorph.auditing.audit import fit_on_task, simplified, tabulated_in_files
from anamorph.auditing.noise import noise_floor, rounding
from anamorph.auditing.samples import (
    described_sequences,
    few_sequences,
    scored_sequences,
    scored_task,
    unwatched,
)
from anamorph.auditing.works import Auditor, Work, plan
from anamorph.errors import RunFolderError, in_run_folder
from anamorph.faithfulness.metrics import metric_names
from anamorph.faithfulness.spooled import write_rows
from anamorph.faithfulness.sums import SumIndex
from anamorph.files import of_each, write_bytes, write_json, write_table
from anamorph.machine.threads import torch_threads
from anamorph.models.base import Model
from anamorph.models.fingerprint import Identity
from anamorph.progress import Event, Watch
from anamorph.runs.cells import (
    CellFiles,
    Origin,
    check_works,
    digest,
    digest_of_file,
    halved,
    require_works,
    work_file,
)
from anamorph.runs.folder import Run, read_json
from anamorph.runs.underway import write_plan
from anamorph.simplifications import FittedProxies
from anamorph.store import Address
from anamorph.studies.sources import Study, check_weights
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
            batch = few_sequences(self.study.task, self.model)
            identity = Identity.of(self.model, batch)
            require_same = partial(identity.require_same, self.model, batch)
            weights = check_weights(self.run, identity.weights, self.seed, keep=True)
            fitted = self.fit(weights, require_same)
            self.audit(fitted, require_same)
            for file in self.looks():
                self.look(file.name, fitted)

    @property
    def fits(self) -> Address:
        """Where what was fitted lies."""
        return self.run.seed(self.seed) / "simplifications.safetensors"

    def fit(self, weights: str, require_same: Callable[[], None]) -> FittedProxies:
        """The fitted proxies; fits them unless they are there already.

        Args:
            weights: a digest of the model's.
            require_same: refuses a model that was changed meanwhile.
        """
        task, proxies = self.study.task, self.study.proxies
        sequences = self.study.options.fit_sequences
        if not self.fits.exists():
            count = sum(bool(p.attachments) for p in simplified(proxies))
            step = f"fitting {count} proxies"
            with self._step(step):
                found = fit_on_task(self.model, proxies, task, sequences, self._batch(step))
                require_same()
                found.from_origin(self.fitted_to(weights)).save(self.fits)
        return self.fitted(weights)

    def fitted(self, weights: str) -> FittedProxies:
        """The fitted proxies as they lie there, as whoever goes on with the run will have them.

        Args:
            weights: a digest of the model's.

        Raises:
            RunFolderError: if they were fitted to something else.
        """
        with in_run_folder():
            fitted = FittedProxies.load(self.fits)
        if fitted.origin != self.fitted_to(weights):
            raise RunFolderError(
                f"{self.fits} was fitted to another model or other data than there are now; delete "
                "it, and the same command fits again."
            )
        return fitted

    def fitted_to(self, weights: str) -> dict[str, str]:
        """What fits come from, in digests; argument as of `fitted`."""
        task, proxies = self.study.task, self.study.proxies
        known, sequences = self.run.spec["fingerprints"]["data"], self.study.options.fit_sequences
        on = {task.train.name, *(name for proxy in proxies for name in proxy.on)}
        return {
            "weights": weights,
            "data": digest(*(known[name] for name in sorted(on)), sequences),
        }

    def audit(self, fitted: FittedProxies, require_same: Callable[[], None]) -> None:
        """Write the works that are not there yet; arguments as `fit` gives and takes them."""
        auditor = self.auditor(fitted)
        left = list(self.left(auditor))
        done = Counter({split.name: len(self.study.proxies) for split in auditor.task.evaluated})
        for work, _ in left:
            done[work.split] -= len(work.proxies)
        for work, origin in left:
            content = self.execute(auditor, work, origin, self._part(work, done[work.split]))
            require_same()
            write_bytes(self.run.work(self.seed, work.split, work.number), content)
            done[work.split] += len(work.proxies)

    def auditor(self, fitted: FittedProxies) -> Auditor:
        """Whoever executes the works."""
        study, settings = self.study, self.study.settings(self.run)
        most = study.options.sequences
        return Auditor(self.model, study.task, study.proxies, fitted, most, settings)

    def left(self, auditor: Auditor) -> Iterator[tuple[Work, Origin]]:
        """The works that are not there yet, with what their sums will come from.

        Raises:
            RunFolderError: if one that is there comes from something else.
        """
        names, fits = [s.name for s in self.study.task.evaluated], digest_of_file(self.fits)
        data = {split.name: split.fingerprint for split in auditor.task.evaluated}
        works = plan(self.study.proxies, self.study.shape, names)
        origins = {
            self.run.work(self.seed, work.split, work.number): self._origin(
                auditor, work, fits, data[work.split]
            )
            for work in works
        }
        stored = self.run.stored(self.seed, origins)
        check_works({path: origin for path, origin in origins.items() if path in stored})
        for work, (path, origin) in zip(works, origins.items(), strict=True):
            if path not in stored:
                yield work, origin

    def execute(
        self,
        auditor: Auditor,
        work: Work,
        origin: Origin,
        watch: Callable[[int, int], None] = unwatched,
    ) -> bytes:
        """The content of a work's file; arguments as `left` gives them."""
        sums = auditor.execute(work, watch)
        auditor.require_same(work, self.study.others)
        return work_file(sums, origin)

    def _origin(self, auditor: Auditor, work: Work, fits: str, data: str) -> Origin:
        """What the sums of a work come from."""
        known, version = self.run.spec["fingerprints"], self.run.spec["anamorph"]
        models = [known["models"][text] for text in work.proxies if text in known["models"]]
        metrics = [known["metrics"]] if known.get("metrics") else []
        options = replace(auditor.settings, threads=None)
        return Origin(
            weights=auditor.fitted.origin["weights"],
            simplifications=digest(models) if models else fits,
            data=digest(data, known["data"][CANDIDATES]),
            options=digest(version, auditor.sequences, options, metric_names(), *metrics),
        )

    def looks(self) -> list[Address]:
        """What else is to be written of the model, and is not there yet."""
        names = ["sites.parquet", "noise.json"]
        if any(edited_head(p.sites, self.study.shape.sites) for p in self.study.proxies):
            names.append("heads.parquet")
        files = [self.run.seed(self.seed) / name for name in names]
        return [file for file in files if not file.exists()]

    def look(self, name: str, fitted: FittedProxies) -> None:
        """Write one of `looks`, by its name."""
        match name:
            case "sites.parquet":
                self.look_at_sites(fitted)
            case "noise.json":
                self.measure_noise()
            case "heads.parquet":
                self.score_heads()

    def measure_noise(self) -> None:
        """Write `noise.json`: the noise floor, and what batching alone does."""
        path, task = self.run.seed(self.seed) / "noise.json", self.study.task
        with self._step("noise floor"):
            settings = self.study.settings(self.run)
            floor = noise_floor(
                self.model, task, batch_tokens=settings.batch_tokens, threads=settings.threads
            )
            write_json(path, {"floor": floor, "rounding": rounding(self.model, task)})

    def look_at_sites(self, fitted: FittedProxies) -> None:
        """Write `sites.parquet`: what proxies make of the model's own activations.

        Args:
            fitted: as `fit` gives it.
        """
        path = self.run.seed(self.seed) / "sites.parquet"
        with self._step("explained variance"):
            splits = scored_task(self.study.task, self.study.proxies).evaluated
            found = at_sites(self.model, splits, fitted.values())
            write_table(path, found.select(pl.lit(self.seed, pl.Int64).alias("seed"), pl.all()))

    def score_heads(self) -> None:
        """Write `heads.parquet`, which is wanted if some proxy edits a single head."""
        path = self.run.seed(self.seed) / "heads.parquet"
        with self._step("head scores"):
            tokens = self.study.settings(self.run).batch_tokens
            scores = head_scores(self.model, self.study.task.reference, batch_tokens=tokens)
            write_table(path, scores.select(pl.lit(self.seed, pl.Int64).alias("seed"), pl.all()))

    def _step(self, step: str) -> AbstractContextManager[None]:
        return told(self.watch, f"seed {self.seed}: {step}")

    def _batch(self, step: str) -> Callable[[int, int], None]:
        """Tells of a batch that is read; what is learnt of all of them comes after the last."""
        named = f"seed {self.seed}: {step}"
        return lambda done, total: self.watch(Event(named, done, total + 1))

    def _part(self, work: Work, before: int) -> Callable[[int, int], None]:
        """Tells of a work as a part of all cells of its split."""
        step, cells = f"seed {self.seed}: audit on {work.split}", len(self.study.proxies)
        some = len(work.proxies)
        return lambda done, total: self.watch(Event(step, before + some * done // total, cells))


def plan_run(run: Run, study: Study) -> None:
    """Tell how many works there are, for whoever asks how far the run is."""
    names = [split.name for split in study.task.evaluated]
    write_plan(run, len(plan(study.proxies, study.shape, names)))


def tabulate_run(run: Run, study: Study) -> None:
    """Write the tables of a run from its works."""
    task, options = study.task, study.options
    splits = scored_task(task, study.proxies).evaluated
    scored = [scored_sequences(split, options.sequences) for split in splits]
    for split in scored:
        write_table(run.sequences(split.name), described_sequences(split))
    indexes = {split.name: SumIndex.of(split) for split in scored}
    works = plan(study.proxies, study.shape, list(indexes))
    require_works(run, works)
    cells = CellFiles(run, works, indexes)
    floor = worst_floor(_noise(run))
    with tabulated_in_files(cells, task, study.proxies, options, floor) as tables:
        write_rows(run.path / "contrasts.parquet", tables.contrasts)
        write_rows(run.path / "gaps.parquet", tables.gaps)
        write_rows(run.path / "results.parquet", tables.results)


def write_examples(run: Run, study: Study, watch: Watch) -> None:
    """Write `views/worst.parquet` of the first model of a run, from its works and tables."""
    seed = study.seeds[0]
    path = run.seed(seed) / "views" / "worst.parquet"
    if path.exists():
        return
    fitted = FittedProxies.load(run.seed(seed) / "simplifications.safetensors")
    model, settings = study.model(run, seed, watch), study.settings(run)
    sequences = study.options.sequences
    auditor = Auditor(model, study.task, study.proxies, fitted, sequences, settings)
    with torch_threads(study.threads) if study.threads else nullcontext():
        write_table(path, examples(Findings(run.path, run.spec), auditor, seed))


def _noise(run: Run) -> list[dict[str, Any]]:
    return [read_json(run.seed(seed) / "noise.json", dict) for seed in run.seeds]


def report_run(run: Run, figures: Sequence[str] | None = None) -> None:
    """Write `checks.json`, and the report, with still figures of these names; see `render`."""
    splits = run.results["split"].unique().to_list()
    works = [path for seed in run.seeds for split in splits for path in run.works_of(seed, split)]
    cells = sum(of_each(halved, works))
    write_json(run.path / "checks.json", self_checks(run.results, _noise(run), cells))
    report.render(run.path, figures)


@contextmanager
def told(watch: Watch, step: str) -> Iterator[None]:
    """Tell that a step begins, and that it is done unless it fails."""
    watch(Event(step, 0, 1))
    yield
    watch(Event(step, 1, 1))
