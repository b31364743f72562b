"""`anamorph audit`: other simplifications on the models of a run, or any on a model of your own."""

from pathlib import Path
from typing import Annotated

import typer

from anamorph.cli.console import stdout
from anamorph.cli.progress import shown
from anamorph.cli.tables import print_run
from anamorph.errors import AnamorphError

GIVEN = "A model of your own"


def audit(
    simplify: Annotated[
        list[str],
        typer.Option(help="A spec such as 'svd(rank=[1,2,4])@*.*.{query,key}'; repeatable."),
    ],
    out: Annotated[Path, typer.Option(help="A new run folder for the results.")],
    run: Annotated[
        Path | None, typer.Argument(help="A run folder, whose models and data are used.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A model folder, a GGUF file, or with --hub a name.", rich_help_panel=GIVEN
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="ROLE=PATH or ROLE:NAME=PATH, the role iid, ood or train; repeatable.",
            rich_help_panel=GIVEN,
        ),
    ] = None,
    fit_on: Annotated[
        str, typer.Option(help="The split that is fitted on.", rich_help_panel=GIVEN)
    ] = "train",
    by: Annotated[
        str,
        typer.Option(help="One proxy a head, one a layer, or all at once.", rich_help_panel=GIVEN),
    ] = "head",
    until: Annotated[
        float | None,
        typer.Option(help="Stop a cell when its interval is so narrow.", rich_help_panel=GIVEN),
    ] = None,
    correlation: Annotated[
        float,
        typer.Option(
            help="With --until: correlation within a sequence to assume until data show it.",
            rich_help_panel=GIVEN,
        ),
    ] = 0.5,
    sequences: Annotated[
        int, typer.Option(help="Of each split, at most.", rich_help_panel=GIVEN)
    ] = 1000,
    fit_sequences: Annotated[int, typer.Option(help="To fit on.", rich_help_panel=GIVEN)] = 200,
    length: Annotated[int, typer.Option(help="Tokens a sequence.", rich_help_panel=GIVEN)] = 128,
    packing: Annotated[
        str,
        typer.Option(
            help="truncate: the beginnings of documents; window, pack: all of them.",
            rich_help_panel=GIVEN,
        ),
    ] = "truncate",
    text_field: Annotated[
        str, typer.Option(help="The field with the text.", rich_help_panel=GIVEN)
    ] = "text",
    spans_field: Annotated[
        str | None,
        typer.Option(help="A field with [start, end, label] spans.", rich_help_panel=GIVEN),
    ] = None,
    hub: Annotated[
        bool, typer.Option("--hub", help="Fetch the model from the hub.", rich_help_panel=GIVEN)
    ] = False,
) -> None:
    """Audit the models of a run with other simplifications, or a model and data of your own."""
    if (run is None) == (model is None):
        raise AnamorphError(
            "Give either a run folder, whose models are audited, or --model with --data."
        )
    console = stdout()
    if run is not None:
        from anamorph.study import audit_study

        with shown(console) as watch:
            result = audit_study(run, simplify, out, watch=watch)
    else:
        from anamorph.given import audit_given
        from anamorph.models.load import load_pretrained
        from anamorph.tasks import text_task

        assert model is not None
        if not data:
            raise AnamorphError(
                "--model needs --data, such as --data iid=a.jsonl --data ood:python=b.jsonl."
            )
        loaded, tokenizer = load_pretrained(model, hub=hub)
        task = text_task(
            data,
            tokenizer,
            length=length,
            packing=packing,  # type: ignore[arg-type]
            sequences=sequences,
            fit_on=fit_on,
            fit_sequences=fit_sequences,
            text_field=text_field,
            spans_field=spans_field,
            vocabulary=loaded.vocabulary,
        )
        with shown(console) as watch:
            result = audit_given(
                loaded,
                task,
                simplify,
                out,
                name=Path(model).name,
                by=by,  # type: ignore[arg-type]
                sequences=sequences,
                fit_sequences=fit_sequences,
                until=until,
                correlation=correlation,
                watch=watch,
            )
    print_run(result, console)
    console.print(f"Report: {result.report}", soft_wrap=True)
