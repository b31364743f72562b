"""What every page has: scripts, styles and figures that it embeds, and escaped text."""

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from anamorph.analysis import words
from anamorph.report.figure import VEGA_LITE, Figure
from anamorph.report.theme import CONFIG, DARK, FONT, LIGHT, MONO, css


def filled(template: str, **content: Any) -> str:
    """A page from a file in `templates/`; text in it is escaped."""
    environment = Environment(
        loader=PackageLoader("anamorph.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("percent", "points", "number", "threshold", "listing", "split_label"):
        environment.filters[name] = vars(words)[name]
    return environment.get_template(template).render(**content)


def frame(figures: Sequence[Figure], more: Sequence[str] = ()) -> dict[str, Any]:
    """Scripts, style and data that a page embeds.

    Args:
        figures: all that stand on it.
        more: files in `templates/` with other scripts of the page.
    """
    templates = files("anamorph.report") / "templates"
    script, style = ((templates / x).read_text("utf-8") for x in ("report.js", "report.css"))
    scripts = [_bundle(), script, *((templates / name).read_text("utf-8") for name in more)]
    dark = f"@media screen and (prefers-color-scheme:dark){{:root{{{css(DARK)}}}}}"
    colours = f":root{{--sans:{FONT};--mono:{MONO};{css(LIGHT)}}}{dark}"
    return {
        "specs": {
            figure.name: embedded({"spec": figure.spec(), "columns": figure.columns()})
            for figure in figures
        },
        "config": embedded({"config": CONFIG, "light": LIGHT}),
        "scripts": [Markup(text) for text in scripts],
        "style": Markup(f"{colours}\n{style}"),
        "hashes": " ".join(f"'sha256-{_hash(text)}'" for text in scripts),
    }


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script; seconds to make, always the same."""
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE)
    return script.replace("</script", "<\\/script")


def embedded(value: Any) -> Markup:
    """JSON that cannot end its script element, whatever text it holds."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
