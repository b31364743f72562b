"""Finding out in which format a coder is stored, and reading it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from anamorph.errors import AnamorphError
from anamorph.registered import registered
from anamorph.simplifications.formats import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    saelens,
    sparsify,
)
from anamorph.simplifications.formats.coder import SparseCoder
from anamorph.simplifications.formats.cross_layer import CrossLayer
from anamorph.simplifications.formats.stored import Stored


class Format(NamedTuple):
    """One way in which coders are stored.

    Attributes:
        looks: whether a folder is of this format, by the names of its files.
        read: the coder of one layer in it.
        files: what such a folder holds, in words.
        name: of a format of one's own, to be registered by.
    """

    looks: Callable[[Path], bool]
    read: Callable[[Path, int | None], Stored[SparseCoder]]
    files: str
    name: str = ""


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

OWN = "anamorph.formats"  # under which formats of one's own are registered


ACROSS = {
    "circuit-tracer": (circuit_tracer.looks, circuit_tracer.read_across, circuit_tracer.CONFIG),
    "Gemma Scope 2": (
        gemma_scope.looks_across,
        gemma_scope.read_across,
        gemma_scope.ACROSS.format("*"),
    ),
}
"""Formats of cross-layer transcoders: whether a folder is of one, its reader, and its files."""


def folder_of(path: Path | str) -> Path:
    """The folder of a coder, given itself or the file of weights in it.

    Raises:
        AnamorphError: if there is none.
    """
    folder = Path(path).expanduser()
    if folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise AnamorphError(f"There is no folder {path}; give that of a sparse coder.")
    return folder


def read_coder(path: Path | str, layer: int | None = None) -> Stored[SparseCoder]:
    """The coder of a layer in a folder of any known format.

    Args:
        path: the folder, or the file of weights in it; or a folder of such folders, a layer each,
            in whose names the layer is the first number.
        layer: for which layer of the model, where the folder holds several; None for the first of a
            set.

    Raises:
        AnamorphError: if there is no folder, if it is of no known format or of two, or as the
            format's own reader.
    """
    folder = folder_of(path)
    within = [] if _formats(folder) else _of_layer(folder, layer)
    if len(within) > 1:
        raise AnamorphError(
            f"The folder {path} holds several for layer {layer}: "
            f"{', '.join(inner.name for inner in within)}; name one."
        )
    folder = within[0] if within else folder
    found = _formats(folder)
    if len(found) != 1:
        known = "; ".join(f"{name}: {form.files}" for name, form in _all().items())
        what = f"is of {' and '.join(found)}" if found else "is of no format that is known"
        across = any(looks(folder) for looks, _, _ in ACROSS.values())
        hint = " It is a cross-layer transcoder: use clt(PATH)." if across else ""
        raise AnamorphError(f"The folder {path} {what}; known are, {known}.{hint}")
    (form,) = found.values()
    return form.read(folder, layer)


def read_cross_layer(path: Path | str, layer: int) -> Stored[CrossLayer]:
    """The cross-layer transcoder in a folder, as it is where it writes one layer.

    Raises:
        AnamorphError: as `read_coder`.
    """
    folder = folder_of(path)
    for looks, read, _ in ACROSS.values():
        if looks(folder):
            return read(folder, layer)
    known = "; ".join(f"{name}: {files}" for name, (_, _, files) in ACROSS.items())
    raise AnamorphError(
        f"The folder {path} is of no format of cross-layer transcoders that is known; known are, "
        f"{known}."
    )


def _all() -> dict[str, Format]:
    return {**FORMATS, **{part.name: part.load() for part in registered(OWN)}}


def _formats(folder: Path) -> dict[str, Format]:
    return {name: form for name, form in _all().items() if form.looks(folder)}


def _of_layer(folder: Path, layer: int | None) -> list[Path]:
    """The folders of coders in a folder whose names have a layer for their first number."""
    coders = [inner for inner in sorted(folder.iterdir()) if inner.is_dir() and _formats(inner)]
    return [inner for inner in coders if re.findall(r"\d+", inner.name)[:1] == [str(layer)]]
