"""Which anamorph this is."""

import tomllib
from contextlib import suppress
from importlib import metadata
from pathlib import Path


def version() -> str:
    """The version of the installed package, or of the checkout that this code lies in.

    Returns:
        such as "0.1.0"; "0.1.0+checkout" where the package is not installed; "0+unknown" where it
        was copied from somewhere without its pyproject.toml.
    """
    with suppress(metadata.PackageNotFoundError):
        return metadata.version("anamorph")
    with suppress(OSError, KeyError, tomllib.TOMLDecodeError):
        project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
        if project["project"]["name"] == "anamorph":
            return f"{project['project']['version']}+checkout"
    return "0+unknown"
