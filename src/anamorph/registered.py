"""What a user's own code adds in this process, beside what installed packages offer.

A registry asks here as it asks for entry points. This file knows nothing of what it holds, so that
every room can use it; `anamorph.studies.plugins` says what may be registered.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Registered:
    """A part that was registered, asked for as an entry point is.

    Attributes:
        name: by which it is asked for.
        value: where it is from, such as "the plugin parts.py".
        part: itself.
    """

    name: str
    value: str
    part: Any

    def load(self) -> Any:
        """The part; it is there already."""
        return self.part


@dataclass(frozen=True)
class Plugin:
    """A file that was run because somebody named it.

    Attributes:
        path: where it lies, absolute.
        fingerprint: a digest of its bytes, as they were run.
    """

    path: Path
    fingerprint: str

    def described(self) -> dict[str, str]:
        """As `spec.json` names it."""
        return {"path": str(self.path), "fingerprint": self.fingerprint}


class State(NamedTuple):
    """All that is registered: by entry-point group and name; and the plugins that were loaded."""

    parts: dict[str, dict[str, Registered]]
    plugins: list[Plugin]


_parts: dict[str, dict[str, Registered]] = {}  # by entry-point group, and name
_plugins: list[Plugin] = []


def registered(group: str) -> list[Registered]:
    """What was registered for an entry-point group, in the order in which it was."""
    return list(_parts.get(group, {}).values())


def add(group: str, part: Registered) -> None:
    """Register a part, in place of one of the same name."""
    _parts.setdefault(group, {})[part.name] = part


def loaded_plugins() -> list[Plugin]:
    """The plugins of this process, in the order in which they were loaded."""
    return list(_plugins)


def add_plugin(plugin: Plugin) -> None:
    """Note that a plugin was loaded."""
    _plugins.append(plugin)


def now() -> State:
    """All that is registered and loaded."""
    return State({group: dict(some) for group, some in _parts.items()}, list(_plugins))


def restore(state: State) -> None:
    """Forget whatever was registered or loaded since."""
    _parts.clear()
    _parts.update(state.parts)
    _plugins[:] = state.plugins
