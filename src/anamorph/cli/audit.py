"""`anamorph audit`: other simplifications on the models of a run, or any on a model of your own."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from anamorph.cli.console import stdout
from anamorph.cli.outcome import complete, print_outcome
from anamorph.cli.progress import shown
from anamorph.studies.specification import AuditOptions


def _given(name: str, help: str, *flags: str) -> Any:
    """An option for a model of your own; if it is not given, the file's or the default counts."""
    default = AuditOptions.model_fields[name].default
    return typer.Option(
        *flags,
        help=escape(help),
        rich_help_panel="A model of your own",
        show_default=str(default) if default else False,
    )


def audit(
    source: Annotated[
        Path | None,
        typer.Argument(
            help="A run folder, whose models and data are used; or a TOML file with options, which "
            "those of the command line replace.",
            metavar="RUN|TOML",
        ),
    ] = None,
    simplify: Annotated[
        list[str] | None,
        typer.Option(help="A spec such as 'svd(rank=[1,2,4])@*.*.{query,key}'; repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A new run folder for the results.")] = None,
    model: Annotated[
        str | None, _given("model", "A model folder, a GGUF file, or with --hub a name.")
    ] = None,
    data: Annotated[
        list[str] | None,
        _given("data", "ROLE=PATH or ROLE:NAME=PATH, the role iid, ood or train; repeatable."),
    ] = None,
    fit_on: Annotated[str | None, _given("fit_on", "The split that is fitted on.")] = None,
    by: Annotated[
        str | None, _given("by", "One proxy a head, one a layer, or all at once.")
    ] = None,
    until: Annotated[
        float | None, _given("until", "Stop a cell when its interval is so narrow.")
    ] = None,
    correlation: Annotated[
        float | None,
        _given(
            "correlation",
            "With --until: correlation within a sequence to assume until data show it.",
        ),
    ] = None,
    sequences: Annotated[int | None, _given("sequences", "Of each split, at most.")] = None,
    fit_sequences: Annotated[int | None, _given("fit_sequences", "To fit on.")] = None,
    length: Annotated[int | None, _given("length", "Tokens a sequence.")] = None,
    packing: Annotated[
        str | None,
        _given("packing", "truncate: the beginnings of documents; window, pack: all of them."),
    ] = None,
    text_field: Annotated[str | None, _given("text_field", "The field with the text.")] = None,
    spans_field: Annotated[
        str | None, _given("spans_field", "A field with [start, end, label] spans.")
    ] = None,
    masked: Annotated[
        float | None,
        _given("masked", "For masked models: the share of tokens to hide and predict."),
    ] = None,
    hub: Annotated[bool | None, _given("hub", "Fetch the model from the hub.", "--hub")] = None,
) -> None:
    """Audit the models of a run with other simplifications, or a model and data of your own."""
    given = {key: value for key, value in locals().items() if value not in (None, [])}
    given |= {"out": str(out)} if out is not None else {}
    file = given.pop("source", None)
    if file is not None and file.suffix != ".toml":
        given["run"], file = str(file), None
    options = AuditOptions.read(file, given)
    console = stdout()
    before = complete(options.out)
    if options.run is not None:
        from anamorph.studies.study import audit_study

        with shown(console) as watch:
            result = audit_study(
                options.run, options.simplify, options.out, workers=None, watch=watch
            )
    else:
        from anamorph.studies.given import audit_loaded, load_given

        loaded, task = load_given(options)
        with shown(console) as watch:
            result = audit_loaded(loaded, task, options, watch)
    print_outcome(result, console, before=before)
