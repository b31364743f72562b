"""`anamorph list`: what there is to work with."""

from inspect import Parameter, cleandoc, signature
from typing import Annotated

import typer
from rich.markup import escape

from anamorph.cli.console import stdout
from anamorph.cli.options import Plugins
from anamorph.errors import AnamorphError
from anamorph.models.sites import HEAD_KINDS, LAYER_KINDS
from anamorph.simplifications import find_simplification, simplification_names
from anamorph.studies.specification import preset_text, presets, with_presets
from anamorph.tasks import task_names

OF_ANY = (
    "all of them also take joint=true, by which the sites of a head share one fit, and on=SPLIT, "
    "to be fitted on another split than train; and keep=1, which leaves the first position as it is"
)


Preset = Annotated[
    str | None,
    typer.Argument(
        help="A preset, such as dyck-smoke: print it, as a file that run takes.",
        metavar="[PRESET]",
        show_default=False,
    ),
]


def list_(preset: Preset = None, plugins: Plugins = None) -> None:
    """List tasks with their presets, and simplifications; or print what a preset says."""
    if preset is not None:
        print(preset_text(preset), end="")
        return
    console = stdout()
    for task in task_names():
        if named := ", ".join(presets(task)):
            said = f"presets: {named}"
        else:
            how = "`anamorph audit --data`" if task == "text" else "`am.load_task` in Python"
            said = f"no presets: for {how}"
        console.print(f"{'task':<16}{task} ({said})")
    for name in with_presets():
        if name not in task_names():
            said = f"{name} (pairs of texts; presets: {', '.join(presets(name))})"
            console.print(f"{'task':<16}{said}")
    for name in simplification_names():
        console.print(escape(f"{'simplification':<16}{_described(name)}"), soft_wrap=True)
    console.print(f"{'':<16}{OF_ANY}", soft_wrap=True)


def _described(name: str) -> str:
    """Name and parameters, and a line each on what it does, and on where it can stand."""
    try:
        found = find_simplification(name)
        own = [p for p in signature(found).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    except Exception as error:  # of a package that somebody installed: the others can be listed
        reason = str(error) if isinstance(error, AnamorphError) else repr(error)
        return f"{name}: cannot be loaded ({reason})"
    parameters = f"({', '.join(map(_parameter, own))})" if own else ""
    does = " ".join(cleandoc(found.__doc__ or "not documented").split("\n\n")[0].split())
    order = (*HEAD_KINDS, *LAYER_KINDS, *sorted(found.kinds))
    kinds = ", ".join(sorted(found.kinds, key=order.index))
    return "\n".join([f"{name}{parameters}", f"{'':<16}{does}", f"{'':<16}at: {kinds}"])


def _parameter(parameter: Parameter) -> str:
    """As a spec has it, such as "rank=…" or "wrap=true"."""
    value = "…" if parameter.default is Parameter.empty else parameter.default
    return f"{parameter.name}={str(value).lower() if isinstance(value, bool) else value}"
