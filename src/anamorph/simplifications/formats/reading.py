"""Finding out in which format a coder is stored, and reading it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from anamorph.errors import AnamorphError
from anamorph.simplifications.formats import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    saelens,
    sparsify,
)
from anamorph.simplifications.formats.stored import Stored


class Format(NamedTuple):
    """One way in which coders are stored.

    Attributes:
        looks: whether a folder is of this format, by the names of its files.
        read: the coder of one layer in it.
        files: what such a folder holds, in words.
    """

    looks: Callable[[Path], bool]
    read: Callable[[Path, int], Stored]
    files: str


FORMATS = {
    "SAELens": Format(
        saelens.looks, lambda path, _: saelens.read(path), f"cfg.json and {saelens.WEIGHTS}"
    ),
    "sparsify": Format(
        sparsify.looks, lambda path, _: sparsify.read(path), f"cfg.json and {sparsify.WEIGHTS}"
    ),
    "dictionary_learning": Format(
        dictionary_learning.looks,
        lambda path, _: dictionary_learning.read(path),
        f"config.json and {dictionary_learning.WEIGHTS}",
    ),
    "Gemma Scope": Format(
        gemma_scope.looks,
        lambda path, _: gemma_scope.read(path),
        f"{gemma_scope.FIRST}, or {gemma_scope.SECOND} and config.json",
    ),
    "circuit-tracer": Format(
        circuit_tracer.looks, circuit_tracer.read, f"{circuit_tracer.CONFIG} and layer files"
    ),
}
"""By the name of the package or release that writes it."""


def read_coder(path: Path | str, layer: int) -> Stored:
    """The coder of a layer in a folder of any known format.

    Args:
        path: the folder, or the file of weights in it.
        layer: for which layer of the model, where the folder holds several.

    Raises:
        AnamorphError: if there is no folder, if it is of no known format or of two, or as the
            format's own reader.
    """
    folder = Path(path).expanduser()
    if folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise AnamorphError(f"There is no folder {path}; give that of a sparse coder.")
    found = {name: form for name, form in FORMATS.items() if form.looks(folder)}
    if len(found) != 1:
        known = "; ".join(f"{name}: {form.files}" for name, form in FORMATS.items())
        what = f"is of {' and '.join(found)}" if found else "is of no format that is known"
        raise AnamorphError(f"The folder {path} {what}; known are, {known}.")
    (form,) = found.values()
    return form.read(folder, layer)
