"""A study as a file: TOML that somebody wrote, or the `spec.json` of a run.

A file is data: it says what is to be done, and can have nothing executed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

from anamorph.errors import AnamorphError
from anamorph.machine.devices import Matmul
from anamorph.runs.folder import REQUIRED, read_json
from anamorph.store import Address, beside
from anamorph.studies.changes import SIMPLIFIES, change, check_keys, read_toml
from anamorph.studies.pairs import PairsSpec
from anamorph.studies.plugins import require_plugins
from anamorph.studies.specification import AUDIT, GivenSpec, StudySpec, preset_values

ENDINGS = (".toml", ".json")
OF_FILE = ("preset", "out", "vary")  # what a file may say besides the specification


class StudyFile(NamedTuple):
    """What a file says is to be done.

    Attributes:
        spec: of a study that trains its models, of an audit of a model that is given, or of pairs.
        out: the run folder, if it names one.
        preset: that of the run whose `spec.json` it is, for the record.
        vary: the values of each setting that is varied, by its name, such as `training.steps`.
    """

    spec: StudySpec | GivenSpec | PairsSpec
    out: Address | None
    preset: str | None
    vary: Mapping[str, list[Any]] = MappingProxyType({})


def is_file(task: str) -> bool:
    """Whether a file is named, rather than a task."""
    return Path(task).suffix.lower() in ENDINGS


def read_study(
    file: Address,
    settings: Sequence[str] = (),
    seeds: int | None = None,
    simplify: Sequence[str] = (),
) -> StudyFile:
    """Read a study from a file, with changes.

    Args:
        file: TOML with the attributes of `StudySpec`; with `preset = "dyck-smoke"`, what it does
            not say is that preset's. Or the `spec.json` of a run, of which what is resolved counts:
            the same study again.
        settings: as for `load_preset`.
        seeds: likewise.
        simplify: if there are any, in place of all simplifications in the file.

    Raises:
        AnamorphError: if it cannot be read, or something in it does not fit.
    """
    if file.suffix.lower() == ".json":
        return _of_run(file, settings, seeds, simplify)
    values = read_toml(file)
    out = values.pop("out", None)
    if out is not None and not isinstance(out, str):
        raise AnamorphError(f"{file}: out must be the path of a run folder; got {out!r}.")
    vary = values.pop("vary", {})
    if not isinstance(vary, dict) or not all(isinstance(x, list) for x in vary.values()):
        raise AnamorphError(
            f"{file}: vary must be a table of settings with a list of values each, such as "
            f'"training.steps" = [100, 300] below [vary]; got {vary!r}.'
        )
    base = values.pop("preset", None)
    if base is not None:
        values = _merged(_preset(file, base), values)
    kind = PairsSpec if "pairs" in values else StudySpec
    if isinstance(values.get("model"), str) and "data" in values:
        raise AnamorphError(
            f"{file} is an audit of a model that is there; give it to `anamorph audit {file}`."
        )
    check_keys(file, values, [*OF_FILE, *kind.model_fields], "part of a study")
    change(values, settings, seeds, simplify)
    if kind is PairsSpec and seeds is not None:
        raise AnamorphError(f"{file} audits a model that is there; leave --seeds out.")
    said = kind.of(values, _where(file, settings))
    return StudyFile(said, None if out is None else beside(file.parent, out), None, vary)


def recorded_audit(file: Address) -> dict[str, Any]:
    """The options of the audit of a given model whose `spec.json` this is.

    They are as `read_audit` has them.

    Raises:
        AnamorphError: if it is none, or of a model that was given in Python.
    """
    spec = _read_spec(file)
    if spec["training"] is not None:
        raise AnamorphError(
            f"{file} is of a study that trains its models. `anamorph run {file}` does it again, "
            f"and `anamorph audit {file.parent}` takes its models."
        )
    if spec.get("source") is None:
        raise AnamorphError(
            f"{file} is of a model that was given in Python ({spec['model'].get('name')}), which "
            "no file can make again. Call am.audit_given with that model and its task."
        )
    return {**spec["source"], "simplify": list(spec["simplify"]), **_products(spec)}


def _of_run(
    file: Address, settings: Sequence[str], seeds: int | None, simplify: Sequence[str]
) -> StudyFile:
    spec = _read_spec(file)
    where = _where(file, settings)
    if spec["training"] is None:
        values = recorded_audit(file)
        if settings or seeds is not None:
            raise AnamorphError(
                f"{file} is of a model that was given; --set and --seeds are for models that are "
                "trained. `anamorph audit` takes the file too, with options in place of its own."
            )
        change(values, (), None, simplify)
        return StudyFile(GivenSpec.of_options(values, where), None, None)
    values = {key: spec[key] for key in StudySpec.model_fields if key in spec and key != "device"}
    values["audit"] = {key: value for key, value in values["audit"].items() if key in AUDIT}
    values |= _products(spec)
    change(values, settings, seeds, simplify)
    return StudyFile(StudySpec.of(values, where), None, spec.get("preset"))


def _read_spec(file: Address) -> dict[str, Any]:
    """The content of a run's `spec.json`."""
    spec = read_json(file, dict)
    missing = [key for key in REQUIRED if key not in spec]
    if missing:
        raise AnamorphError(
            f"{file} has no {', '.join(missing)}, so it is not the spec.json of a run. A study "
            "that you write yourself is a TOML file."
        )
    require_plugins(spec, file)
    return spec


def _products(spec: Mapping[str, Any]) -> dict[str, Any]:
    """How the run multiplied float32 matrices."""
    said = spec.get("matmul_precision")
    return {"matmul": said} if said in get_args(Matmul) else {}


def _preset(file: Address, base: object) -> dict[str, Any]:
    task, _, name = base.partition("-") if isinstance(base, str) else ("", "", "")
    if not name:
        raise AnamorphError(
            f"{file}: preset must name a task and its preset, such as 'dyck-smoke'; got {base!r}."
        )
    return preset_values(task, name)


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A preset with what a file says: tables key by key, and all simplifications if it has any."""
    if any(key in own for key in SIMPLIFIES):
        base = {key: value for key, value in base.items() if key not in SIMPLIFIES}
    merged = dict(base)
    for key, value in own.items():
        there = merged.get(key)
        tables = isinstance(there, dict) and isinstance(value, dict)
        merged[key] = _merged(there, value) if tables else value  # type: ignore[arg-type]
    return merged


def _where(file: Address, settings: Sequence[str]) -> str:
    return f"{file}{' and --set' if settings else ''}"
