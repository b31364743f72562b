"""`anamorph audit`: other simplifications on the models of a run, or any on a model of your own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from anamorph.cli import gates
from anamorph.cli.audited import audit_into
from anamorph.cli.console import stderr
from anamorph.cli.dry_run import DryRun, On, require_dry_run, tell
from anamorph.cli.options import (
    Address,
    AsJson,
    Device,
    EngineName,
    Figures,
    NoFigures,
    Plugins,
    Products,
    chosen_engine,
    chosen_figures,
)
from anamorph.cli.vary import Vary, say_which, vary_into
from anamorph.runs.folder import Run, load_run
from anamorph.store import Address as Place
from anamorph.store import address_of
from anamorph.studies.changes import read_vary
from anamorph.studies.sources import GivenStudy
from anamorph.studies.spec_files import recorded_audit
from anamorph.studies.specification import OF_FILES, AgainSpec, GivenSpec, read_audit
from anamorph.studies.study import audit_files, audit_study, study_again
from anamorph.studies.varied import combinations

OPTIONS: dict[str, tuple[Any, str]] = {
    "model": (str, "A model folder, a GGUF file, or with --hub a name."),
    "data": (list[str], "ROLE=PATH or ROLE:NAME=PATH, the role iid, ood or train; repeatable."),
    "fit_on": (str, "The split that is fitted on."),
    "by": (str, "One proxy a head, one a layer, or all at once."),
    "until": (float, "Stop a cell when its interval is so narrow."),
    "correlation": (
        float,
        "With --until: correlation within a sequence to assume until data show it.",
    ),
    "sequences": (int, "Of each split, at most."),
    "fit_sequences": (int, "To fit on."),
    "length": (int, "Tokens a sequence."),
    "packing": (str, "truncate: the beginnings of documents; window, pack: all of them."),
    "text_field": (str, "The field with the text."),
    "spans_field": (str, "A field with [start, end, label] spans."),
    "masked": (float, "For masked models: the share of tokens to hide and predict."),
    "hub": (bool, "Fetch the model from the hub."),
    "dtype": (str, "Of its weights: float32, bfloat16 or float16."),
}
"""For a model of one's own; an option that is not given is the file's, or has its default."""


def _with_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb `OPTIONS` in place of its `**options`."""
    fields = {name: field.default for name, field in GivenSpec.model_fields.items()}
    defaults = fields | asdict(OF_FILES)
    parameters = list(signature(verb).parameters.values())[:-1]
    for name, (kind, text) in OPTIONS.items():
        default = defaults[name]
        told = bool(default) and isinstance(default, str | int | float)
        option = typer.Option(
            f"--{name.replace('_', '-')}",
            help=escape(text),
            rich_help_panel="A model of your own",
            show_default=str(default) if told else False,
        )
        parameter = Parameter(name, Parameter.KEYWORD_ONLY, default=None)
        parameters.append(parameter.replace(annotation=Annotated[kind | None, option]))
    verb.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return verb


@_with_options
def audit(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A run folder, whose models and data are used; or a TOML file with options, or "
            "the spec.json of an audit, which those of the command line replace.",
            metavar="RUN|FILE",
        ),
    ] = None,
    simplify: Annotated[
        list[str] | None,
        typer.Option(help="A spec such as 'svd(rank=[1,2,4])@*.*.{query,key}'; repeatable."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="A new run folder for the results, also as s3://bucket/run."
        ),
    ] = None,
    device: Device = None,
    matmul: Products = None,
    vary: Vary = None,
    plugins: Plugins = None,
    engine: EngineName = "local",
    address: Address = None,
    dry_run: DryRun = False,
    on: On = None,
    as_json: AsJson = False,
    figures: Figures = None,
    no_figures: NoFigures = False,
    fail_below: gates.FailBelow = None,
    fail_under: gates.FailUnder = None,
    fail_on: gates.FailOn = None,
    **options: Any,
) -> None:
    """Audit the models of a run with other simplifications, or a model and data of your own."""
    require_dry_run(dry_run, on)
    asked = gates.asked(fail_below, fail_under, fail_on)
    names = chosen_figures(figures, no_figures)
    given = {"simplify": simplify, "out": out, "device": device, "matmul": matmul, **options}
    given = {name: value for name, value in given.items() if value not in (None, [])}
    file = None if source is None else address_of(source)
    if file is not None and file.suffix == ".json":
        given, file = recorded_audit(file) | given, None
    elif file is not None and file.suffix != ".toml":
        given["run"], file = str(file), None
    if dry_run:
        given.setdefault("out", Path("nowhere"))
    varied = {key.replace("-", "_"): x for key, x in read_vary(vary or ()).items()}
    each = {n: read_audit(file, given | x) for n, x in combinations(varied).items()}
    if dry_run:
        for name, (one, folder) in each.items():
            say_which(name)
            _tell(one, address_of(folder) / name, on, as_json)
        return
    how = {"workers": None, "figures": names, "engine": chosen_engine(engine, address)}
    gates.hold(asked, _do(varied, each, how, as_json))


def _do(
    varied: Mapping[str, Sequence[Any]],
    each: Mapping[str, tuple[GivenSpec | AgainSpec, str]],
    how: dict[str, Any],
    as_json: bool,
) -> dict[str, Run]:
    """One audit or several; the runs, by what to call them."""
    spec, folder = next(iter(each.values()))
    if varied:
        specs = {name: one for name, (one, _) in each.items()}
        return vary_into(address_of(folder), varied, specs, how, as_json)
    if isinstance(spec, AgainSpec):
        where: dict[str, Any] = {"device": spec.device, "matmul": spec.matmul}
        work = partial(audit_study, spec.run, spec.simplify, folder, **where, **how)
    else:
        few = {name: how[name] for name in ("figures", "engine")}
        work = partial(audit_files, spec, folder, **few)
    audit_into(folder, work, as_json)
    return {"": load_run(folder)}


def _tell(spec: GivenSpec | AgainSpec, folder: Place, on: int | None, as_json: bool) -> None:
    """What it would take."""
    stderr().print("Reading model and data; then a little of the work is done and timed.")
    study = study_again(spec) if isinstance(spec, AgainSpec) else GivenStudy.load(spec)
    tell(study, folder, None, on, as_json)
