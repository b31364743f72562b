"""`anamorph list`: what there is to work with."""

from inspect import Parameter, cleandoc, signature

from rich.markup import escape

from anamorph.cli.console import stdout
from anamorph.errors import AnamorphError
from anamorph.models.sites import HEAD_KINDS, LAYER_KINDS
from anamorph.simplifications import Simplification, find_simplification, simplification_names
from anamorph.studies.specification import presets
from anamorph.tasks import task_names


def list_() -> None:
    """List tasks with their presets, and simplifications with parameters and sites."""
    console = stdout()
    for task in task_names():
        if named := presets(task):
            said = f"presets: {', '.join(named)}"
        else:
            how = "`anamorph audit --data`" if task == "text" else "`am.load_task` in Python"
            said = f"no presets: for {how}"
        console.print(f"task            {task} ({said})", highlight=False)
    for name in simplification_names():
        console.print(escape(_described(name)), highlight=False, soft_wrap=True)


def _described(name: str) -> str:
    """A line with parameters, one on what it does, and one on where it can stand."""
    try:
        found = find_simplification(name)
        parameters = _parameters(found)
    except Exception as error:  # of a package that somebody installed: the others can be listed
        reason = error if isinstance(error, AnamorphError) else repr(error)
        return f"{'simplification':<16}{name}: cannot be loaded ({reason})"
    does = " ".join(cleandoc(found.__doc__ or "not documented").split("\n\n")[0].split())
    order = (*HEAD_KINDS, *LAYER_KINDS, *sorted(found.kinds))
    kinds = ", ".join(sorted(found.kinds, key=order.index))
    return f"{'simplification':<16}{name}{parameters}\n{'':<16}{does}\n{'':<16}at: {kinds}"


def _parameters(found: type[Simplification]) -> str:
    """As a spec has them, such as "(rank=…, joint=false)"."""
    given = [p for p in signature(found).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    return f"({', '.join(map(_parameter, given))})" if given else ""


def _parameter(parameter: Parameter) -> str:
    value = parameter.default
    if value is Parameter.empty:
        return f"{parameter.name}=…"
    return f"{parameter.name}={str(value).lower() if isinstance(value, bool) else value}"
