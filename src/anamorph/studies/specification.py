"""What is to be done, as data: a study from a preset, an audit from options or a TOML file.

A specification says what is compared, and where the models come from: they are trained
(`StudySpec`), given by name of a file (`GivenSpec`), or those of a run (`AgainSpec`).
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from difflib import get_close_matches
from importlib import resources
from os.path import expanduser
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationError,
    field_validator,
    model_validator,
)

from anamorph.auditing.options import AuditOptions
from anamorph.errors import AnamorphError
from anamorph.faithfulness.gaps import Thresholds
from anamorph.machine.devices import Matmul
from anamorph.models.huggingface.load import Dtype
from anamorph.simplifications import AnotherModel
from anamorph.simplifications.grammar import read_models
from anamorph.store import Address, beside
from anamorph.studies.changes import change, check_keys, read_toml
from anamorph.tasks.text.sequences import Packing
from anamorph.training.train import TrainingConfig

AUDIT = tuple(field.name for field in fields(AuditOptions))
SECTIONS = {"training": TrainingConfig, "audit": AuditOptions, "thresholds": Thresholds}
OF_FILES = AuditOptions(by="head", fit_sequences=200)
"""What `anamorph audit` does with a model of one's own unless it is told otherwise."""


class Specification(BaseModel):
    """What every specification says.

    Attributes:
        simplify: spec strings; a list value stands for one proxy each.
        device: where models compute; see `anamorph.machine.devices.find_device`.
        matmul: how float32 matrices are multiplied; None leaves it to the process.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    simplify: tuple[str, ...] = ()
    device: str = "auto"
    matmul: Matmul | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> Self:
        """Read a specification from plain values.

        Args:
            values: by name.
            where: they come from; named in errors.

        Raises:
            AnamorphError: if a key is unknown or a value does not fit.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = []
            for e in error.errors():
                place, own = e["loc"], e.get("ctx", {}).get("error")  # what our own checks say
                said = str(own).rstrip(".") if own else f"{e['msg']} (given: {e['input']!r})"
                if e["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
                    section = SECTIONS.get(str(place[-2])) if place[1:] else None
                    known = [x.name for x in fields(section)] if section else [*cls.model_fields]
                    near = get_close_matches(str(place[-1]), known, n=1)
                    expected = f"; expected one of {', '.join(known)}"
                    expected = (f" (did you mean {near[0]!r}?)" if near else "") + expected
                    said = f"there is no such setting{expected if section or not place[1:] else ''}"
                problems.append(": ".join(filter(None, (".".join(map(str, place)), said))))
            raise AnamorphError(
                f"The specification in {where} does not fit: {'; '.join(problems)}."
            ) from error


class StudySpec(Specification):
    """Everything that the numbers of a study depend on, which trains its models.

    Attributes:
        task: the task's name and arguments.
        model: the decoder's shape (`anamorph.models.decoder.DecoderConfig`), without what the task
            decides.
        training: see `anamorph.training.train.TrainingConfig`.
        each_layer: as `simplify`, split into one proxy a layer (`anamorph.simplifications.sweep`).
        each_head: likewise, into one a head.
        audit: see `anamorph.auditing.options.AuditOptions`.
        seeds: of the models.
        threads: processor threads a model uses. Sums are rounded in an order that depends on it.
    """

    task: dict[str, Any]
    model: dict[str, Any] = {}
    training: TrainingConfig = TrainingConfig()
    each_layer: tuple[str, ...] = ()
    each_head: tuple[str, ...] = ()
    audit: AuditOptions = AuditOptions()
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field(default=(0,), min_length=1)
    threads: int = Field(default=1, ge=1)

    @classmethod
    def of_run(cls, spec: Mapping[str, Any], again: "AgainSpec", where: str) -> Self:
        """The specification of a run that trained its models, with other simplifications.

        Args:
            spec: the content of its `spec.json`.
            again: what is asked for.
            where: both come from; named in errors.
        """
        asked = {"simplify": again.simplify, "device": again.device, "matmul": again.matmul}
        replaced: dict[str, Any] = {**asked, "each_layer": [], "each_head": []}
        known = {key: spec[key] for key in cls.model_fields if key not in replaced}
        # A run of an earlier version also says how its intervals were resampled.
        known["audit"] = {key: v for key, v in known["audit"].items() if key in AUDIT}
        return cls.of(known | replaced, where)

    @model_validator(mode="after")
    def _simplifies(self) -> Self:
        """Told here, before a task is made."""
        if not (self.simplify or self.each_layer or self.each_head):
            raise ValueError(
                "there is no simplification; simplify, each_layer or each_head must name one"
            )
        return self

    @field_validator("task")
    @classmethod
    def _named(cls, task: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(task.get("name"), str):
            raise ValueError("task.name must say which task, such as 'dyck'")
        return task

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("the seeds must differ from each other")
        return seeds


class GivenSpec(Specification):
    """The audit of a pretrained model on texts, as files say it.

    Attributes:
        model: a model folder, a GGUF file, or with `hub` a name.
        data: `ROLE=PATH` or `ROLE:NAME=PATH` each; in TOML a table from roles to paths.
        fit_on: the split that is fitted on.
        fit_also: evaluated splits of which so many sequences are read that some can be fitted on;
            None for those that `simplify` names by `on=`.
        length: tokens a sequence.
        packing: how documents become sequences.
        text_field: the field with the text.
        spans_field: a field with [start, end, label] spans.
        masked: for masked models, the share of tokens to hide and predict.
        hub: whether the model may be fetched from the hub.
        dtype: the number format of the model's weights.
        audit: see `anamorph.auditing.options.AuditOptions`; in files and on the command line, its
            attributes stand beside the others.
    """

    model: str
    data: list[str]
    fit_on: str = "train"
    fit_also: list[str] | None = None
    length: StrictInt = 128
    packing: Packing = "truncate"
    text_field: str = "text"
    spans_field: str | None = None
    masked: float | None = None
    hub: StrictBool = False
    dtype: Dtype = "float32"
    audit: AuditOptions = OF_FILES

    @classmethod
    def of_options(cls, values: Mapping[str, Any], where: str) -> Self:
        """As `of`, of values among which are those of `AuditOptions`, as options and files are."""
        audit = asdict(OF_FILES) | {key: values[key] for key in AUDIT if key in values}
        return cls.of({k: v for k, v in values.items() if k not in AUDIT} | {"audit": audit}, where)

    def from_anywhere(self) -> dict[str, Any]:
        """What `of_options` makes the same of from any folder: paths are absolute."""
        here = {"simplify", "audit", "device", "matmul"}
        values = self.model_dump(mode="json", exclude=here) | asdict(self.audit)
        if Path(self.model).exists():
            values["model"] = str(Path(self.model).absolute())
        named = [entry.partition("=") for entry in self.data]
        values["data"] = [f"{role}={Path(expanduser(path)).absolute()}" for role, _, path in named]
        return values


class AgainSpec(Specification):
    """The audit of the models of a run with other simplifications.

    Attributes:
        run: its folder.
    """

    run: str


def read_audit(
    file: Address | None, options: Mapping[str, Any]
) -> tuple[GivenSpec | AgainSpec, str]:
    """Options over those of a TOML file; paths in the file are relative to its folder.

    Args:
        file: the TOML file, if there is one. `fit-on` is as good as `fit_on`.
        options: what is given beside it, and counts first: attributes of `GivenSpec` and
            `AuditOptions`, or `run`; and `out`.

    Returns:
        the specification, and the run folder for the results.

    Raises:
        AnamorphError: if the file cannot be read, or a key or value does not fit.
    """
    values, where = dict(options), "the options"
    if file is not None:
        found = _read_options(file)
        hub = bool(options.get("hub", found.get("hub", False)))
        found = {key: _beside(file.parent, key, value, hub) for key, value in found.items()}
        values, where = found | values, f"{file} and the options"
    _check_options(values)
    out = str(values.pop("out"))
    if "run" in values:
        return AgainSpec.of(values, where), out
    return GivenSpec.of_options(values, where), out


def _read_options(file: Address) -> dict[str, Any]:
    values = {key.replace("-", "_"): value for key, value in read_toml(file).items()}
    known = ["run", "out", *(name for name in (*GivenSpec.model_fields, *AUDIT) if name != "audit")]
    check_keys(file, values, known, "an option of an audit")
    return values


def _beside(folder: Address, key: str, value: Any, hub: bool) -> Any:
    """A value of a file in that folder, with its paths as seen from here."""
    if key in ("run", "out") and isinstance(value, str):
        return str(beside(folder, value))
    if key == "model" and isinstance(value, str):
        path = folder / expanduser(value)
        return value if hub and not path.exists() else str(path)
    if key == "simplify":
        found = []
        for spec in value if isinstance(value, list) else [value]:
            models = read_models(spec) if isinstance(spec, str) else []
            found += [str(AnotherModel(str(folder / expanduser(x)))) for x in models] or [spec]
        return found
    if key == "data":
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise AnamorphError(
                f"data must be a table from ROLE or ROLE:NAME to paths, such as data = {{iid = "
                f"'a.jsonl', 'ood:python' = 'b.jsonl'}}; given: {value!r}."
            )
        return [f"{role}={folder / expanduser(path)}" for role, path in value.items()]
    return value


def _check_options(values: Mapping[str, Any]) -> None:
    """Whether together they say what to audit, and how."""
    if ("run" in values) == ("model" in values):
        raise AnamorphError(
            "Give either a run folder, whose models are audited, or --model with --data."
        )
    examples = {"simplify": "'svd(rank=[1,2,4])@*.*.{query,key}'", "out": "runs/mine"}
    if "model" in values:
        examples["data"] = "iid=a.jsonl --data ood:python=b.jsonl"
    for key, example in examples.items():
        if not values.get(key):
            raise AnamorphError(f"An audit needs --{key}, such as --{key} {example}.")
    other = sorted(set(values) - {"run", "device", "matmul", *examples})
    if "run" in values and other:
        raise AnamorphError(
            f"The models and data of a run are audited as they are there: {', '.join(other)} "
            "cannot be given with it."
        )


def presets(task: str) -> list[str]:
    """The names of a task's presets."""
    return sorted(n.removeprefix(f"{task}-") for n in _files() if n.startswith(f"{task}-"))


def preset_text(name: str) -> str:
    """A preset as it is written, such as `dyck-smoke`.

    Raises:
        AnamorphError: if there is none of this name.
    """
    known = sorted(_files())
    if name not in known:
        raise AnamorphError(f"There is no preset {name!r}; there are: {', '.join(known)}.")
    file = resources.files("anamorph.studies.presets") / f"{name}.toml"
    return file.read_text("utf-8")


def with_presets() -> list[str]:
    """What `anamorph run` knows by name: tasks, and pairs of texts."""
    return sorted({name.partition("-")[0] for name in _files()})


def _files() -> list[str]:
    """The files with presets, without their ending."""
    files = resources.files("anamorph.studies.presets").iterdir()
    return [file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")]


def paper_steps(task: str) -> int | None:
    """For how many steps the preset `paper` of a task trains; None if there is no such preset."""
    return load_preset(task, "paper").training.steps if "paper" in presets(task) else None


def load_preset(
    task: str,
    preset: str,
    settings: Sequence[str] = (),
    seeds: int | None = None,
    simplify: Sequence[str] = (),
) -> StudySpec:
    """A preset with changes.

    Args:
        task: such as `dyck`.
        preset: such as `demo`.
        settings: `section.key=value` each, the value in TOML; a bare word is a string.
        seeds: train this many models, with the seeds 0, 1, ...
        simplify: if there are any, in place of all simplifications of the preset.

    Raises:
        AnamorphError: if there is no such preset, it trains no models, or a change does not fit.
    """
    values = preset_values(task, preset)
    if "pairs" in values:
        raise AnamorphError(
            f"The presets of {task!r} audit a model that is there, on pairs of texts, and train "
            f"none; give: anamorph run {task}."
        )
    change(values, settings, seeds, simplify)
    return StudySpec.of(values, f"preset {preset!r}" + (" and --set" if settings else ""))


def preset_values(task: str, preset: str) -> dict[str, Any]:
    """What a preset says; arguments and errors as those of `load_preset`."""
    known = presets(task)
    if not known:
        hint = "; audit --data takes texts of your own" if task == "text" else ""
        raise AnamorphError(
            f"There are no presets for {task!r}; tasks with presets are: "
            f"{', '.join(with_presets())}{hint}."
        )
    if preset not in known:
        raise AnamorphError(
            f"There is no preset {preset!r} for the task {task!r}; its presets are: "
            f"{', '.join(known)}."
        )
    file = resources.files("anamorph.studies.presets") / f"{task}-{preset}.toml"
    return tomllib.loads(file.read_text("utf-8"))
