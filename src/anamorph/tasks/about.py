"""What a task says of itself to those who read a report; no number depends on it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypedDict


class Choice(TypedDict):
    """Something that was chosen: what it is about, what was chosen, and why."""

    what: str
    choice: str
    why: str


@dataclass(frozen=True)
class About:
    """What a report says of a task; all of it may be left out.

    Attributes:
        facts: short ones for one line, such as "k = 20".
        checksum: of the data, where they come from outside.
        choices: how the data are made, and why so.
        labels: what a facet is called where its name alone is not clear.
        borders: by facet the last of its levels that training has; charts draw a line behind it.
        matched: the facet in whose levels an attention head may match a token with the one that it
            is about, such as the depth of brackets; charts show whether it does.
        averages: in which way means over positions and over sequences differ, in a sentence.
    """

    facts: tuple[str, ...] = ()
    checksum: str | None = None
    choices: tuple[Choice, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    borders: Mapping[str, str] = field(default_factory=dict)
    matched: str | None = None
    averages: str = ""

    def describe(self) -> dict[str, Any]:
        """JSON values for a run's `spec.json`, which lists the choices with those of the run."""
        return {key: value for key, value in asdict(self).items() if key != "choices"}

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> "About":
        """What a run's `spec.json` has, without choices; empty if an earlier version wrote it."""
        said = spec.get("about", {})
        known = {key.name: said[key.name] for key in fields(cls) if key.name in said}
        return cls(**known | {"facts": tuple(said.get("facts", ()))})
