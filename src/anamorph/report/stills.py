"""The figures as files: PNG, SVG and PDF, all of them or those that are named."""

import json
import warnings
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import vl_convert

from anamorph.errors import AnamorphError
from anamorph.files import replacing
from anamorph.report.charts.sections import MAKERS
from anamorph.report.figure import VEGA_LITE, Figure
from anamorph.report.theme import CONFIG, in_light
from anamorph.store import Address

SCALE = 2  # PNG pixels per point
KINDS = ("png", "svg", "pdf")
LIGHT_CONFIG: dict[str, Any] = json.loads(in_light(json.dumps(CONFIG | {"background": "#ffffff"})))
"""The Vega configuration with the colours themselves, on white."""


def check_names(names: Sequence[str]) -> None:
    """Whether there are figures of these names, in whatever run.

    Args:
        names: of figures; `*` and `?` stand for any letters.

    Raises:
        AnamorphError: if not.
    """
    if isinstance(names, str):
        raise AnamorphError(f'Figures are a list of names; got {names!r}. Give ["{names}"].')
    for name in names:
        if not any(fnmatchcase(known, name) or name.startswith(f"{known}_") for known in MAKERS):
            raise AnamorphError(
                f"There is no figure {name!r}; there are: {', '.join(MAKERS)}. Patterns such as "
                "'gap*' stand for several."
            )


def write_stills(figures: Sequence[Figure], folder: Address, names: Sequence[str] | None) -> None:
    """Write figures, or those of them that are named.

    Args:
        figures: of the run.
        folder: into which.
        names: as of `anamorph.report.render`.
    """
    for name in names or ():
        if not _named(figures, [name]):
            warnings.warn(
                f"This run has no data for the figure {name!r}; it has: "
                f"{', '.join(figure.name for figure in figures)}.",
                stacklevel=2,
            )
    for figure in figures if names is None else _named(figures, names):
        _write(figure, folder)


def _named(figures: Sequence[Figure], names: Sequence[str]) -> list[Figure]:
    """Figures by their own names, such as `attended_depth`, or those of `MAKERS`: `attended`."""
    return [
        figure
        for figure in figures
        for known in MAKERS
        if figure.name == known or figure.name.startswith(f"{known}_")
        if any(fnmatchcase(each, name) for each in (figure.name, known) for name in names)
    ]


def _write(figure: Figure, folder: Address) -> None:
    for suffix, chosen in figure.files.items():
        spec = in_light(json.dumps(figure.still(**chosen), allow_nan=False))
        svg = vl_convert.vegalite_to_svg(
            spec, vl_version=VEGA_LITE, config=LIGHT_CONFIG, allowed_base_urls=[]
        )
        file = folder / f"{figure.name}{suffix}"
        with replacing(file.with_name(f"{file.name}.svg")) as temporary:
            temporary.write_text(svg, encoding="utf-8")
        with replacing(file.with_name(f"{file.name}.png")) as temporary:
            temporary.write_bytes(vl_convert.svg_to_png(svg, scale=SCALE))
        with replacing(file.with_name(f"{file.name}.pdf")) as temporary:
            temporary.write_bytes(vl_convert.svg_to_pdf(svg))
