"""The verbs of the command line, all of them."""

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from anamorph.version import version

VERBS = {
    **{name: name for name in ("run", "train", "audit", "compare", "report", "show", "query")},
    **{name: name for name in ("worst", "data", "sites", "export")},
    "list": "list_",
}
"""By its name the function of each verb, in the file of that name."""


class _Verbs(TyperGroup):
    """Imports a verb when it is asked for: most need torch, which takes its time."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        one = typer.Typer(add_completion=False)
        verb = getattr(import_module(f"anamorph.cli.{cmd_name}"), VERBS[cmd_name])
        one.command(name=cmd_name)(verb)
        return get_command(one)


app = typer.Typer(
    cls=_Verbs,
    help="Does a simplified view of a Transformer still hold away from the data it was fitted on?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        print(version())
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    pass
