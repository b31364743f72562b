"""The verbs of the command line, all of them."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from anamorph.version import version

VERBS = {
    **{name: name for name in ("run", "train", "audit", "compare", "along", "report")},
    **{name: name for name in ("show", "query", "worst", "data", "sites", "export")},
    "list": "list_",
}
"""By its name the function of each verb, in the file of that name."""


class _Commands(Mapping[str, Any]):
    """The commands by name, imported when they are asked for: most need torch, which takes long."""

    def __getitem__(self, name: str) -> Any:
        one = typer.Typer(add_completion=False)
        verb = getattr(import_module(f"anamorph.cli.{name}"), VERBS[name])
        one.command(name=name)(verb)
        return get_command(one)

    def __contains__(self, name: object) -> bool:
        return name in VERBS

    def __iter__(self) -> Iterator[str]:
        return iter(VERBS)

    def __len__(self) -> int:
        return len(VERBS)


class _Verbs(TyperGroup):
    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands: Any = _Commands()

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return self.commands[cmd_name] if cmd_name in VERBS else None


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
