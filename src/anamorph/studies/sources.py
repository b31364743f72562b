"""Where the models of a study come from: they are trained in it, or given to it.

This is all in which studies differ; what is done with the models is one pipeline
(`anamorph.studies.study`).
"""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch

from anamorph.analysis import pictures
from anamorph.auditing.audit import Simplify, check_audit, listed, proxies_of, simplified
from anamorph.auditing.engine import Settings
from anamorph.auditing.options import AuditOptions
from anamorph.auditing.samples import few_sequences, scored_task
from anamorph.auditing.sizes import usual_batches
from anamorph.errors import AnamorphError, RunFolderError, in_run_folder
from anamorph.faithfulness.metrics import all_metrics
from anamorph.files import at_hand, replacing, write_json
from anamorph.machine.devices import accelerator, find_device, is_fast_at_bfloat16
from anamorph.models.base import Model
from anamorph.models.decoder import Decoder
from anamorph.models.fingerprint import differing, probe_logits
from anamorph.models.huggingface.load import load_pretrained
from anamorph.paper import claims
from anamorph.paper.choices import choices
from anamorph.paper.tables import Tables
from anamorph.progress import Watch, ignore
from anamorph.registered import loaded_plugins
from anamorph.runs.cells import digest
from anamorph.runs.comparing import changed, check_same
from anamorph.runs.folder import Run, read_json
from anamorph.simplifications import ProxySpec, check_readable, expand
from anamorph.simplifications.fingerprint import fingerprint_of
from anamorph.studies.plugins import require_plugins
from anamorph.studies.specification import AgainSpec, GivenSpec, StudySpec, paper_steps
from anamorph.tasks import Task, load_task
from anamorph.tasks.text.task import text_task
from anamorph.tasks.text.tokenizer import Tokenizer
from anamorph.training.train import default_model, resolved, train

FINGERPRINTS = "fingerprints.json"  # of a seed's weights


class Study(ABC):
    """What is to be done, resolved, and where the models come from.

    Args:
        task: the data.
        shape: a model with the sites that proxies stand at; its weights may mean nothing.
        proxies: what is compared with the models, the identity first.
        options: nothing of them is left to task or model.

    Attributes:
        seeds: of the models; (0,) if one was given.
        threads: of torch while a model is worked on, and batches side by side; None if it is not
            for the study to say.
        matmul: how float32 matrices are multiplied; None leaves it to the process.
        others: the fingerprints of proxies that are other models, by their spec strings.

    Raises:
        AnamorphError: if they do not fit together, before any time is spent.
    """

    seeds: tuple[int, ...] = (0,)
    threads: int | None = None
    matmul: str | None = None

    def __init__(
        self, task: Task, shape: Model, proxies: list[ProxySpec], options: AuditOptions
    ) -> None:
        self.task, self.shape, self.proxies, self.options = task, shape, proxies, options
        if len(proxies) == 1:
            raise AnamorphError(
                "There is no simplification, so there is nothing to compare with the model; give "
                "at least one, such as 'svd(rank=[1,2,4])@1.*.{query,key}'."
            )
        check_readable(proxies)
        claims.all_claims()  # an error in what packages offer is told before anything is computed
        self.others = check_audit(shape, task, proxies)
        for text, parts in self.others.items():
            _require_fingerprint(text, parts)

    def describe(self) -> dict[str, Any]:
        """What `spec.json` says, besides version and environment: everything resolved."""
        made = {a.simplification for proxy in simplified(self.proxies) for a in proxy.attachments}
        spec = {
            "study": self.task.name,
            **self.describe_source(),
            "task": dict(self.task.spec),
            "about": self.task.about.describe(),
            "audit": asdict(self.options),
            "plugins": [plugin.described() for plugin in loaded_plugins()],
            "seeds": list(self.seeds),
            "device": self.shape.device.type,
            "accelerator": accelerator(self.shape.device),
            "coders_learnt_in": _products(self.shape.device),
            "matmul_precision": torch.get_float32_matmul_precision(),
        }
        spec["choices"] = [*choices(spec), *self.task.about.choices]
        spec["fingerprints"] = {
            **spec.get("fingerprints", {}),
            "data": self.task.fingerprints(),
            "simplifications": {str(s): s.fingerprint() for s in sorted(made, key=str)},
            "models": self.others,
            "metrics": {
                metric.name: fingerprint_of(metric)
                for metric in all_metrics().values()
                if metric.at is not None
            },
        }
        return spec

    def settings(self, run: Run) -> Settings:
        """How the engine is to compute the sums of a run."""
        on_cpu = self.shape.device.type == "cpu"
        batches = self.threads if self.threads and on_cpu else usual_batches(self.shape)
        return self.options.settings(batches, run.spec["threads"])

    def with_shape(self, shape: Model | None) -> Self:
        """The same study with this in place of its model; None where it only travels."""
        other = copy(self)
        other.shape = shape  # type: ignore[assignment]
        return other

    @abstractmethod
    def describe_source(self) -> dict[str, Any]:
        """What `spec.json` says of the models, and of how proxies are made of specs."""

    @abstractmethod
    def model(self, run: Run, seed: int, watch: Watch) -> Model:
        """The model of a seed, in inference mode."""

    def conclude(self, run: Run) -> list[dict[str, Any]]:
        """The paper's claims as measured; and whatever else follows from the tables of a run."""
        return []


class TrainedStudy(Study):
    """A study that trains its models, or takes those that another run trained.

    Args:
        spec: what is to be done.
        preset: where the specification came from, for the record.
        source: the run whose models are taken, if they are not to be trained.
        watch: told of how the task is made.
    """

    def __init__(
        self,
        spec: StudySpec,
        preset: str | None = None,
        source: Run | None = None,
        watch: Watch = ignore,
    ) -> None:
        self.spec, self.preset, self.source = spec, preset, source
        task = load_task(watch=watch, **spec.task)
        self.config = default_model(task, **spec.model)
        device = find_device(spec.device)
        with torch.random.fork_rng(devices=[]):
            shape = Decoder(self.config).eval().to(device)
        swept = [
            *proxies_of(shape, spec.simplify, spec.audit.by),
            *proxies_of(shape, spec.each_layer, "layer"),
            *proxies_of(shape, spec.each_head, "head"),
        ]
        options = spec.audit.resolved(task, shape)
        super().__init__(task, shape, list(dict.fromkeys(swept)), options)
        self.seeds, self.threads, self.matmul = spec.seeds, spec.threads, spec.matmul

    @classmethod
    def again(cls, run: Run, asked: AgainSpec, watch: Watch) -> "TrainedStudy":
        """The models and data of a run that trained them, with other simplifications.

        Raises:
            AnamorphError: if they are not there, or are not what they were.
        """
        require_plugins(run.spec, run.path)
        spec = StudySpec.of_run(run.spec, asked, f"{run.path} and --simplify")
        study = cls(spec, source=run, watch=watch)
        for seed in spec.seeds:
            if not run.model(seed).exists():  # written last
                raise RunFolderError(
                    f"{run.path} has no model for seed {seed}: its training did not come to its "
                    "end, or the file was deleted. Give its command again first."
                )
        check_kept(run)
        check_same(run, None, study.task)
        return study

    def describe_source(self) -> dict[str, Any]:
        """The specification, with the shape of the models and their training resolved."""
        return {
            "preset": self.preset,
            **self.spec.model_dump(mode="json", exclude={"device", "matmul"}),
            "training": asdict(resolved(self.spec.training, self.shape.device)),
            "model": self.config.__dict__,
            "paper_steps": paper_steps(self.task.name),
        }

    def model(self, run: Run, seed: int, watch: Watch) -> Decoder:
        """The trained model of a seed; it is trained unless it is there, or in the source."""
        path = run.model(seed)
        if self.source is not None:
            for name in ("history.parquet", FINGERPRINTS, path.name):
                theirs, ours = self.source.seed(seed) / name, run.seed(seed) / name
                if theirs.exists() and not ours.exists():
                    with at_hand(theirs) as file, replacing(ours) as temporary:
                        shutil.copyfile(file, temporary)
        if path.exists():
            with in_run_folder():
                return Decoder.load(path).eval().to(self.shape.device)
        model, _ = train(
            self.task,
            config=self.spec.training,
            model=self.config,
            seed=seed,
            device=self.shape.device,
            out=run.seed(seed),
            watch=lambda event: watch(event._replace(step=f"seed {seed}: {event.step}")),
        )
        check_weights(run, model.fingerprint(), seed, keep=True)
        return model.eval()

    def conclude(self, run: Run) -> list[dict[str, Any]]:
        """Write what the pictures are drawn from, of every seed; measure the paper's claims."""
        scored = scored_task(self.task, self.proxies)
        pictures.write(run, scored, self.options.fit_sequences, self.shape.device)
        return claims.measure(Tables.of(run))


class GivenStudy(Study):
    """The audit of one model that somebody has.

    Args:
        model: in inference mode.
        task: its data.
        simplify: as for `anamorph.audit`.
        options: likewise.
        name: what the model is called in the report.
        source: from what `GivenSpec.of_options` makes the same again, for the record; None for a
            model that was given in Python.
        matmul: how float32 matrices are multiplied; None leaves it to the process.
    """

    def __init__(
        self,
        model: Model,
        task: Task,
        simplify: Simplify,
        options: AuditOptions,
        name: str = "model",
        source: Mapping[str, Any] | None = None,
        matmul: str | None = None,
    ) -> None:
        self.simplify = listed(simplify)
        self.name, self.source, self.matmul = name, source, matmul
        resolved = options.resolved(task, model)  # first: it says what is no model or task
        super().__init__(task, model, proxies_of(model, self.simplify, options.by), resolved)
        self.weights = model.fingerprint()
        _require_fingerprint(type(model).__name__, self.weights)

    @classmethod
    def load(cls, spec: GivenSpec) -> "GivenStudy":
        """The model and the data that the command line or a TOML file names.

        Raises:
            AnamorphError: as `load_pretrained` and `text_task`, and if they do not fit together.
        """
        where: dict[str, Any] = {"hub": spec.hub, "device": spec.device, "dtype": spec.dtype}
        return cls.of(spec, *load_pretrained(spec.model, **where))

    @classmethod
    def of(cls, spec: GivenSpec, model: Model, tokenizer: Tokenizer) -> "GivenStudy":
        """As `load`, with the model and its tokenizer loaded already."""
        fit_also = spec.fit_also
        if fit_also is None:
            fit_also = sorted({name for proxy in expand(spec.simplify) for name in proxy.on})
        task = text_task(
            spec.data,
            tokenizer,
            length=spec.length,
            packing=spec.packing,
            sequences=spec.audit.sequences,
            fit_on=spec.fit_on,
            fit_sequences=spec.audit.fit_sequences,
            fit_also=fit_also,
            text_field=spec.text_field,
            spans_field=spec.spans_field,
            masked=spec.masked,
            vocabulary=model.vocabulary,
        )
        name, source = Path(spec.model).name, {**spec.from_anywhere(), "fit_also": fit_also}
        return cls(model, task, spec.simplify, spec.audit, name, source, spec.matmul)

    @classmethod
    def again(cls, run: Run, asked: AgainSpec, watch: Watch) -> "GivenStudy":
        """The model and data of a run that was given them, with other simplifications.

        Raises:
            AnamorphError: if they cannot be loaded again, or are not what they were.
        """
        require_plugins(run.spec, run.path)
        source = run.spec.get("source")
        if source is None:
            raise AnamorphError(
                f"{run.path} audits a model that was given in Python ({run.spec['model']['name']}),"
                " and does not hold it. Call am.audit_given with that model and its task."
            )
        where = f"{run.path} and --simplify"
        now = {"simplify": asked.simplify, "device": asked.device, "matmul": asked.matmul}
        values = {"fit_also": [], **source, **now}  # the data of that run
        study = cls.load(GivenSpec.of_options(values, where))
        check_same(run, study.weights, study.task)
        return study

    def describe_source(self) -> dict[str, Any]:
        """What the model is, by shape, weights and what it says of a few sequences."""
        logits = probe_logits(self.shape, few_sequences(self.task, self.shape))
        return {
            "preset": None,
            "model": {"name": self.name, **self.shape.describe()},
            "training": None,
            "simplify": [str(spec) for spec in self.simplify],
            "threads": torch.get_num_threads(),
            "source": self.source,
            "fingerprints": {"weights": self.weights, "logits": logits},
        }

    def model(self, run: Run, seed: int, watch: Watch) -> Model:
        """The one that was given."""
        return self.shape


def _products(device: torch.device) -> str | None:
    """In which format autoencoders and transcoders multiply as they learn; None on the CPU."""
    if device.type == "cpu":
        return None
    return "bfloat16" if is_fast_at_bfloat16(device) else "float32"


def _require_fingerprint(name: str, parts: Mapping[str, str]) -> None:
    if not parts:
        raise AnamorphError(
            f"{name} has no fingerprint(), so that a run folder could not tell its numbers from "
            "those of another model; define it, or use am.audit."
        )


def check_kept(run: Run) -> None:
    """As `check_weights`, of all models that a run has."""
    for seed in run.seeds:
        if run.model(seed).exists():
            with in_run_folder():
                model = Decoder.load(run.model(seed))
            check_weights(run, model.fingerprint(), seed)


def check_weights(run: Run, now: Mapping[str, str], seed: int, *, keep: bool = False) -> str:
    """A digest of a seed's weights.

    Args:
        run: in which their fingerprint may be written down.
        now: their fingerprint.
        seed: of the model that has them.
        keep: whether to write it down if it is not.

    Raises:
        RunFolderError: if they are not those that the numbers in the run belong to.
    """
    path = run.seed(seed) / FINGERPRINTS
    if keep and not path.exists():
        write_json(path, now)
    different = changed(read_json(path, dict) if path.exists() else now, now)
    if different:
        raise RunFolderError(
            f"The model in {run.seed(seed)} is another than the one that its numbers belong to "
            f"({differing([*different])}). Put the old one back, or delete this folder to have all "
            "of it made again."
        )
    return digest(now)
