"""What a study is to do, as data: a preset from a TOML file, changed by `section.key=value`."""

import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from anamorph.errors import AnamorphError
from anamorph.faithfulness import Thresholds
from anamorph.training import TrainingConfig


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def of(cls, values: Mapping[str, Any], source: str) -> Self:
        """Read a specification from plain values; `source` is named in errors.

        Raises:
            AnamorphError: if a key is unknown or a value does not fit.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, e['loc']))}: {e['msg']} (given: {e['input']!r})"
                for e in error.errors()
            )
            raise AnamorphError(f"The specification in {source} does not fit: {problems}.") from (
                error
            )


class AuditSpec(_Spec):
    """How much is audited, and how it is judged.

    Attributes:
        sequences: scored sequences a split.
        fit_sequences: sequences of `train` on which simplifications are fitted.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        thresholds: see `anamorph.faithfulness.Thresholds`.
    """

    sequences: int = Field(default=1000, ge=2)
    fit_sequences: int = Field(default=1000, ge=1)
    resamples: int = Field(default=1000, ge=100)
    seed: int = Field(default=0, ge=0)
    thresholds: Thresholds = Thresholds()


class StudySpec(_Spec):
    """Everything that a study's numbers depend on.

    Attributes:
        task: the task's name and arguments.
        model: the decoder's shape (`anamorph.models.decoder.DecoderConfig`), without what the task
            decides.
        training: see `anamorph.training.TrainingConfig`.
        simplify: spec strings; a list value stands for one proxy each.
        audit: see `AuditSpec`.
        seeds: of the models.
        threads: processor threads a model uses. Sums are rounded in an order that depends on it.
    """

    task: dict[str, Any]
    model: dict[str, Any] = {}
    training: TrainingConfig = TrainingConfig()
    simplify: tuple[str, ...] = Field(min_length=1)
    audit: AuditSpec = AuditSpec()
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field(default=(0,), min_length=1)
    threads: int = Field(default=1, ge=1)

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("the seeds must differ from each other")
        return seeds


def presets(task: str) -> list[str]:
    """The names of a task's presets."""
    names = (file.name for file in resources.files("anamorph.presets").iterdir())
    return sorted(
        name.removeprefix(f"{task}-").removesuffix(".toml")
        for name in names
        if name.startswith(f"{task}-")
    )


def load_preset(
    task: str, preset: str, settings: Sequence[str] = (), seeds: int | None = None
) -> StudySpec:
    """A preset with changes.

    Args:
        task: such as `dyck`.
        preset: such as `demo`.
        settings: `section.key=value` each, the value in TOML; a bare word is a string.
        seeds: train this many models, with the seeds 0, 1, ...

    Raises:
        AnamorphError: if there is no such preset, or a change does not fit.
    """
    if preset not in presets(task):
        known = ", ".join(presets(task)) or "none"
        raise AnamorphError(
            f"There is no preset {preset!r} for the task {task!r}; its presets are: {known}."
        )
    text = (resources.files("anamorph.presets") / f"{task}-{preset}.toml").read_text("utf-8")
    values = tomllib.loads(text)
    for setting in settings:
        _set(values, setting)
    if seeds is not None:
        if seeds < 1:
            raise AnamorphError(f"A study needs at least 1 seed; got {seeds}.")
        values["seeds"] = list(range(seeds))
    return StudySpec.of(values, f"preset {preset!r}" + (" and --set" if settings else ""))


def _set(values: dict[str, Any], setting: str) -> None:
    path, equals, text = setting.partition("=")
    *sections, key = path.strip().split(".")
    if not equals or not key:
        raise AnamorphError(
            f"Cannot read the setting {setting!r}; expected section.key=value, such as "
            "training.steps=1000."
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise AnamorphError(f"The setting {setting!r} does not fit: {section} has no keys.")
    values[key] = value
