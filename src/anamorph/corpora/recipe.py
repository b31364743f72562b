"""Recipes: which packages of which languages make a corpus."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from anamorph.corpora.languages import LANGUAGES
from anamorph.errors import AnamorphError, require

Client = Literal["pip", "npm", "apt", "apt-source"]


@dataclass(frozen=True)
class Packages:
    """The packages of one language; each is a repository.

    Attributes:
        client: that fetches them: `pip` (wheels), `npm` (packed packages), `apt` (Debian packages)
            or `apt-source` (the sources that Debian packages are made of).
        packages: that are trained on if this is the language that is trained on.
        unseen: that are not.
    """

    client: Client
    packages: tuple[str, ...]
    unseen: tuple[str, ...] = ()


Recipe = Mapping[str, Packages]


def recipe_names() -> list[str]:
    """The recipes that come with anamorph."""
    folder = resources.files("anamorph.corpora") / "recipes"
    return sorted(Path(file.name).stem for file in folder.iterdir())


def read_recipe(name: str) -> Recipe:
    """A recipe by its name, or from a TOML file of your own.

    A recipe has a table for every language, with `client`, `packages` and `unseen`.

    Raises:
        AnamorphError: if there is no such recipe, or a part of it does not fit.
    """
    if name in recipe_names():
        text = (resources.files("anamorph.corpora") / "recipes" / f"{name}.toml").read_text("utf-8")
    else:
        try:
            text = Path(name).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise AnamorphError(
                f"There is no recipe {name!r}; there are: {', '.join(recipe_names())}; or give a "
                "TOML file, a folder with CodeSearchNet's files, or datasets:NAME "
                f"({error})."
            ) from error
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise AnamorphError(f"The recipe {name} is not TOML: {error}.") from error
    return {language: _packages(name, language, table) for language, table in tables.items()}


def _packages(recipe: str, language: str, table: Any) -> Packages:
    where = f"The recipe {recipe}, [{language}]"
    if language not in LANGUAGES:
        raise AnamorphError(f"{where}: no such language; there are: {', '.join(LANGUAGES)}.")
    if not isinstance(table, dict) or not {"client", "packages"} <= set(table):
        raise AnamorphError(f"{where}: it must be a table with client and packages; got {table!r}.")
    if unknown := set(table) - {"client", "packages", "unseen"}:
        raise AnamorphError(
            f"{where}: unknown {', '.join(sorted(unknown))}; known are client, packages, unseen."
        )
    require(f"{where}: client", table["client"], among=get_args(Client))
    for key in ("packages", "unseen"):
        names = table.get(key, [])
        if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
            raise AnamorphError(f"{where}: {key} must be a list of names; got {names!r}.")
        for package in names:
            if package.startswith("-") or any(c.isspace() for c in package):
                raise AnamorphError(f"{where}: {package!r} is not the name of a package.")
    return Packages(table["client"], tuple(table["packages"]), tuple(table.get("unseen", ())))
