"""The plain values of a specification: read from a file, and changed as options ask."""

import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from anamorph.errors import AnamorphError
from anamorph.store import Address

SIMPLIFIES = ("simplify", "each_layer", "each_head")
"""The parts of a specification that name simplifications."""

PLUGINS = ("plugin", "plugins")


def read_toml(file: Address) -> dict[str, Any]:
    """What a TOML file says; it is data, and can have nothing executed.

    Raises:
        AnamorphError: if it cannot be read, or names a plugin.
    """
    try:
        values = tomllib.loads(file.read_text("utf-8-sig"))  # Windows may write a mark in front
    except (OSError, UnicodeDecodeError) as error:
        raise AnamorphError(f"Cannot read {file}: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise AnamorphError(f"{file} is not TOML: {error}.") from error
    for key in PLUGINS:
        if key in values:
            raise AnamorphError(
                f"{file} has the key {key!r}, but a file cannot have code executed: leave it out, "
                "and name the plugin on the command line, by --plugin."
            )
    return values


def check_keys(file: Address, values: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    """Whether a file says only what is known.

    Raises:
        AnamorphError: if not; names the first key that is not, and what is known.
    """
    for key in values:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            raise AnamorphError(
                f"{file} has the key {key!r}, which is not {what}"
                + (f"; did you mean {near[0]!r}?" if near else ".")
                + f" Expected: {', '.join(known)}."
            )


def change(
    values: dict[str, Any],
    settings: Sequence[str] = (),
    seeds: int | None = None,
    simplify: Sequence[str] = (),
) -> None:
    """Change the plain values of a specification.

    Args:
        values: of it, by name.
        settings: `section.key=value` each, the value in TOML; a bare word is a string.
        seeds: as many models, with the seeds 0, 1, ...; None for those that it says.
        simplify: if there are any, in place of all its simplifications.

    Raises:
        AnamorphError: if a change does not fit.
    """
    if simplify:
        for key in SIMPLIFIES:
            values.pop(key, None)
        values["simplify"] = list(simplify)
    for setting in settings:
        _set(values, setting)
    if seeds is not None:
        if seeds < 1:
            raise AnamorphError(f"A study needs at least 1 seed; got {seeds}.")
        values["seeds"] = list(range(seeds))


def read_vary(texts: Sequence[str]) -> dict[str, list[Any]]:
    """The values of settings that are varied.

    Args:
        texts: `setting=value,value` each, the values in TOML; bare words are strings.

    Raises:
        AnamorphError: if one cannot be read so, or a setting is named twice.
    """
    found: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = (part.strip() for part in text.partition("="))
        if not key or not equals or not values:
            raise AnamorphError(
                f"Cannot read --vary {text!r}; expected setting=value,value, such as "
                "training.steps=100,300."
            )
        if key in found:
            raise AnamorphError(f"--vary {key} is given twice; give all its values in one.")
        try:
            found[key] = tomllib.loads(f"values = [{values}]")["values"]
        except tomllib.TOMLDecodeError:
            found[key] = [_value(value) for value in values.split(",")]
    return found


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def _set(values: dict[str, Any], setting: str) -> None:
    path, equals, text = setting.partition("=")
    *sections, key = path.strip().split(".")
    if not equals or not key:
        raise AnamorphError(
            f"Cannot read the setting {setting!r}; expected section.key=value, such as "
            "training.steps=1000."
        )
    value = _value(text)
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise AnamorphError(f"The setting {setting!r} does not fit: {section} has no keys.")
    values[key] = value
