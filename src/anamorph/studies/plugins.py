"""A user's own parts: registered in a script or notebook, or in a file that is named, a plugin.

`load_plugin` is the one place where a user's file is executed, and only one that was named to it:
by `--plugin` on the command line, or by a call. A specification, a run folder or a TOML file never
has a file executed, whatever it says.
"""

import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import entry_points
from inspect import isabstract
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, TypeVar

from anamorph import registered
from anamorph.errors import AnamorphError
from anamorph.faithfulness import metrics
from anamorph.faithfulness.metric import Metric
from anamorph.paper import claims
from anamorph.paper.tables import Claim
from anamorph.registered import Plugin, Registered
from anamorph.simplifications import registry
from anamorph.simplifications.estimator import Fittable
from anamorph.simplifications.formats.reading import FORMATS, OWN, Format
from anamorph.store import Address
from anamorph.tasks import BUILT_IN, GROUP
from anamorph.tasks.own_facets import FACETS, OwnFacet

_Part = TypeVar("_Part")


@dataclass(frozen=True)
class _Kind:
    """What can be registered.

    Attributes:
        called: as it is called.
        group: its entry-point group.
        ours: the names that are taken by anamorph itself.
        name: of a part.
    """

    called: str
    group: str
    ours: Callable[[], Iterable[str]]
    name: Callable[[Any], str]


SIMPLIFICATION = _Kind(
    "simplification",
    registry.ENTRY_POINTS,
    lambda: ("identity", "model", *registry.SIMPLIFICATIONS),
    lambda part: str(vars(part).get("name", "")),
)
METRIC = _Kind(
    "metric",
    metrics.ENTRY_POINTS,
    lambda: [metric if isinstance(metric, str) else metric.name for metric in metrics.BUILT_IN],
    lambda part: part.name,
)
CLAIM = _Kind(
    "claim", claims.ENTRY_POINTS, lambda: [c.id for c in claims.CLAIMS], lambda part: part.id
)
FACET = _Kind("facet", FACETS, lambda: (), lambda part: part.name)
FORMAT = _Kind("format", OWN, lambda: FORMATS, lambda part: part.name)
TASK = _Kind("task", GROUP, lambda: BUILT_IN, lambda part: part.__name__)

_from: list[str] = []  # the plugin that is being run, if one is


def register(part: _Part, *more: object) -> _Part:
    """Make a part of one's own known by its name; also a decorator.

    Args:
        part: a class of simplifications, replacements or weight changes, named by its `name`; a
            `Metric`; an `OwnFacet`; a `Format` of coders; a `Claim`; or a function that makes a
            task, named as it is.
        more: others.

    Returns:
        the first part.

    Registering again in a script or notebook replaces what it registered before.

    Raises:
        AnamorphError: if it is none of these, or its name is taken.

    Example::

        @am.register
        class Half(am.Simplification):
            name = "half"

            def __call__(self, x):
                return x / 2
    """
    for each in (part, *more):
        kind = _kind_of(each)
        _add(kind, kind.name(each), each)
    metrics.all_metrics.cache_clear()
    return part


def _kind_of(part: object) -> _Kind:
    if isinstance(part, type) and issubclass(part, Fittable) and not isabstract(part):
        return SIMPLIFICATION
    if isinstance(part, Metric) and part.at is not None:
        return METRIC
    if isinstance(part, Claim):
        return CLAIM
    if isinstance(part, OwnFacet):
        return FACET
    if isinstance(part, Format):
        return FORMAT
    if isinstance(part, FunctionType):
        return TASK
    raise AnamorphError(
        f"Cannot register {part!r}; expected a subclass of Simplification, Replacement or "
        "WeightChange with all that it needs, a Metric with a function `at`, an OwnFacet, a "
        "Format, a Claim, or a function that makes a task."
    )


def _add(kind: _Kind, name: str, part: object) -> None:
    """Register a part of a kind, unless its name is not one, or is somebody else's."""
    if not isinstance(name, str) or not name.isidentifier():
        raise AnamorphError(
            f"Cannot register {part!r} as a {kind.called}: its name is {name!r}; expected letters, "
            "digits and underscores, such as name = 'round'."
        )
    there = {p.name: p for p in registered.registered(kind.group)}.get(name)
    installed = [e.value for e in entry_points(group=kind.group) if e.name == name]
    where = _from[-1] if _from else "this process"
    taken = None
    if name in kind.ours() or (kind is METRIC and name.endswith(metrics.SUFFIX)):
        taken = "anamorph itself"
    elif installed:
        taken = f"an installed package ({installed[0]})"
    elif there is not None and (_from or there.value != where):
        taken = "this file" if there.value == where else there.value
    if taken is not None:
        raise AnamorphError(
            f"There is a {kind.called} {name!r} already, of {taken}; give yours another name."
        )
    registered.add(kind.group, Registered(name, where, part))


def load_plugin(path: Path | str) -> list[str]:
    """Run a file that registers parts of its own (`register`).

    This executes the file. It is named, with a digest of its bytes, in the `spec.json` of every run
    of this process. A file that was loaded already, and is still the same, is not run again.

    Args:
        path: of the Python file.

    Returns:
        what it has registered, such as "simplification round".

    Raises:
        AnamorphError: if it cannot be read, is not Python, raises something or registers nothing;
            then nothing of it is registered.
    """
    path = Path(path).expanduser().absolute()
    code = _read(path)
    plugin = Plugin(path, sha256(code).hexdigest()[:32])
    if plugin in registered.loaded_plugins():
        return _registered_by(path)
    if path in [known.path for known in registered.loaded_plugins()]:
        raise AnamorphError(
            f"The plugin {path} was loaded already, and has changed since; begin a new process."
        )
    before = registered.now()
    try:
        _run(path, code, f"anamorph_plugin_{path.stem}_{plugin.fingerprint[:8]}")
        found = _registered_by(path)
        if not found:
            raise AnamorphError(
                f"The plugin {path} registers nothing. Have it call am.register(…) for every part "
                "that it is to add, or write @am.register above it."
            )
    except BaseException:
        registered.restore(before)
        metrics.all_metrics.cache_clear()
        raise
    registered.add_plugin(plugin)
    return found


@contextmanager
def plugged(paths: Iterable[Path]) -> Iterator[list[list[str]]]:
    """Load plugins, and forget them at the end; gives what each has registered."""
    before = registered.now()
    try:
        yield [load_plugin(path) for path in paths]
    finally:
        registered.restore(before)
        metrics.all_metrics.cache_clear()


def load_again(plugins: Iterable[Plugin]) -> None:
    """Load the plugins of another process in this one.

    Raises:
        AnamorphError: as `load_plugin`, and if a file has changed meanwhile.
    """
    for plugin in plugins:
        load_plugin(plugin.path)
        if plugin not in registered.loaded_plugins():
            raise AnamorphError(
                f"The plugin {plugin.path} was changed while the run went on. Put the old one "
                "back, and the same command goes on."
            )


def require_plugins(spec: Mapping[str, Any], source: Address | str) -> None:
    """Make sure that the plugins of a run, or others of these names, were loaded by the user.

    Args:
        spec: the content of its `spec.json`. It is data: no file is executed because it says so.
        source: where that is from; named in the error.

    Raises:
        AnamorphError: if one is missing; names it.
    """
    loaded = registered.loaded_plugins()
    known = {plugin.fingerprint for plugin in loaded} | {plugin.path.name for plugin in loaded}
    for plugin in spec.get("plugins") or []:
        path = Path(plugin["path"])
        if known.isdisjoint((plugin["fingerprint"], path.name)):
            raise AnamorphError(
                f"{source} was made with the plugin {path.name}, which is not loaded because a "
                f"file says so. If you trust it, give it again: --plugin {path}, or wherever it "
                "lies now (in Python, am.load_plugin)."
            )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AnamorphError(
            f"Cannot read the plugin {path}: {error.strerror}. Give the path of a Python file."
        ) from error


def _registered_by(path: Path) -> list[str]:
    kinds = (SIMPLIFICATION, METRIC, FACET, FORMAT, TASK, CLAIM)
    parts = [(kind.called, p) for kind in kinds for p in registered.registered(kind.group)]
    return [f"{called} {part.name}" for called, part in parts if part.value == _called(path)]


def _called(path: Path) -> str:
    return f"the plugin {path}"


def _run(path: Path, code: bytes, name: str) -> None:
    """Execute a file as a module of that name, and say where in it an error arose."""
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # where dataclasses, pickle and fingerprints look for it
    _from.append(_called(path))
    try:
        exec(compile(code, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise AnamorphError(f"The plugin {path} failed{_where(path, error)}.") from error
    finally:
        _from.pop()


def _where(path: Path, error: BaseException) -> str:
    """Such as " in line 3: NameError: name 'x' is not defined"."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines = [error.lineno]
    said = (error.msg if isinstance(error, SyntaxError) else str(error)).rstrip(".")
    if not isinstance(error, AnamorphError):
        said = ": ".join(filter(None, (type(error).__name__, said)))
    return f" in line {lines[-1]}: {said}" if lines else f": {said}"
