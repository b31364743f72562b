"""Functions as text, each character shaded by how far proxy and model disagree."""

from typing import Any

import polars as pl

from anamorph.analysis.findings import Findings
from anamorph.analysis.words import split_label

SHADES = 9  # besides unshaded
LEAST = 0.005  # bits of divergence that are shaded at all


def code_view(run: Findings) -> dict[str, Any] | None:
    """What the page's script shows; None if the run has no functions.

    Texts reach the page as text, never as HTML. A position has one
    digit for its shade, and for each of the likeliest tokens a character and two digits of
    per cent.

    Returns:
        `splits` and `proxies`, pairs of name and label; `functions`, each with `split`, `number`,
        `text`, `model` (characters) and `model_p` (digits), and by proxy `shades`, `proxy` and
        `proxy_p`.
    """
    view = run.pictures.get("functions")
    if view is None:
        return None
    proxies = view["simplification"].unique(maintain_order=True).to_list()
    splits = [s for s in run.splits if s in set(view["split"])]
    functions = []
    for (split, sequence), rows in view.group_by("split", "sequence", maintain_order=True):
        first = rows.row(0, named=True)
        functions.append(
            {
                "split": splits.index(str(split)),
                "number": sequence,
                "text": first["text"],
                "model": first["model"],
                "model_p": _digits(first["model_p"]),
                "proxies": [_of_proxy(rows.filter(simplification=name)) for name in proxies],
            }
        )
    return {
        "splits": [split_label(s) for s in splits],
        "proxies": [run.label(name) for name in proxies],
        "functions": functions,
        "top": len(view["model"][0]) // len(view["text"][0]),
    }


def _of_proxy(rows: pl.DataFrame) -> dict[str, str]:
    row = rows.row(0, named=True)
    shades = "".join(str(shade(bits)) for bits in row["jsd"])
    return {"shades": shades, "proxy": row["proxy"], "proxy_p": _digits(row["proxy_p"])}


def _digits(percent: list[int]) -> str:
    return "".join(f"{min(p, 99):02d}" for p in percent)


def shade(bits: float) -> int:
    """0 (unshaded) to 9, by the square root of the divergence, so that small ones are seen."""
    return 0 if bits < LEAST else max(1, min(SHADES, round(SHADES * bits**0.5)))
