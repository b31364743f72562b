"""Texts on the page: each token shaded by how far proxy and model part in predicting it.

Texts reach the page as data, never as HTML. What has a number a token is packed: arrays of whole
numbers, little-endian and in base64, which the page's script unpacks when a text is shown.
"""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from anamorph.analysis.findings import Findings
from anamorph.analysis.pieces import visible
from anamorph.analysis.words import split_label
from anamorph.analysis.worst import usual

MOST_POSITIONS = 200_000  # on the page, of all texts and proxies together
BITS = 10_000  # a divergence is written in parts of a bit, so many
NONE = 65_535  # where nothing is predicted
SCORED, SAME, MODEL_RIGHT, PROXY_RIGHT = 1, 2, 4, 8  # of a position
FLAGS = {"scored": SCORED, "same": SAME, "model_right": MODEL_RIGHT, "proxy_right": PROXY_RIGHT}
TOP = 3  # predictions of each; where there are fewer, the others are empty and have probability 0


@dataclass
class _Codes:
    """Numbers for texts, in the order in which they came."""

    known: dict[str, int] = field(default_factory=dict)

    def of(self, texts: Iterable[str]) -> list[int]:
        """The numbers of some texts."""
        known = self.known
        return [known.setdefault(text, len(known)) for text in texts]


def text_view(run: Findings) -> dict[str, Any] | None:
    """What the page's script shows; None if the run has no texts.

    Returns:
        `splits` and `proxies`, names in words; `first`, the split to show first; `pieces`, the
        texts of tokens; `separate`, whether they are shown with a space between them; `top`,
        predictions a token; `texts`, each with its `split`, `name`, `start`, `length`, and packed
        `tokens` (32 bits, of `pieces`), `model` and `model_p` (`top` a token: 32 bits, and per cent
        in 8); and `cells`, by "split,proxy" the sequences, the worst first: `text` (its number),
        `value`, `same`, `rank`, and packed `bits` (16 bits, in parts of a bit), `flags` (8),
        `proxy` and `proxy_p`.
    """
    table = run.pictures.get("worst")
    table = of_functions(run.pictures.get("functions")) if table is None else table
    if table is None:
        return None
    proxies = table["simplification"].unique(maintain_order=True).to_list()
    splits = [s for s in run.splits if s in set(table["split"])]
    _, first = usual(run, proxies[0])
    codes = _Codes()
    texts: dict[tuple[object, ...], dict[str, Any]] = {}
    cells: dict[str, list[dict[str, Any]]] = {}
    for row in _first(table).iter_rows(named=True):
        place = splits.index(row["split"])
        key = (place, row["sequence"], row["start"])
        if key not in texts:
            texts[key] = {"number": len(texts), "split": place, **_text(row, codes)}
        cell = cells.setdefault(f"{place},{proxies.index(row['simplification'])}", [])
        cell.append({"text": texts[key]["number"], **_of_proxy(row, codes)})
    return {
        "splits": [split_label(s) for s in splits],
        "first": splits.index(first) if first in splits else 0,
        "proxies": [run.label(name) for name in proxies],
        "pieces": [visible(text) for text in codes.known],
        "separate": bool(table["separate"].any()),
        "top": TOP,
        "texts": list(texts.values()),
        "cells": cells,
    }


def of_functions(table: pl.DataFrame | None) -> pl.DataFrame | None:
    """`views/functions.parquet`, which earlier versions wrote of code, as `views/worst.parquet`."""
    if table is None:
        return None
    rows = []
    for row in table.iter_rows(named=True):
        top = len(row["model"]) // len(row["text"])
        best, shares = {}, {}
        for who in ("model", "proxy"):
            best[who] = [[*row[who][i : i + top]] for i in range(0, len(row[who]), top)]
            percent = row[f"{who}_p"]
            shares[f"{who}_p"] = [
                [p / 100 for p in percent[i : i + top]] for i in range(0, len(percent), top)
            ]
        same = [a[0] == b[0] for a, b in zip(best["model"], best["proxy"], strict=True)]
        right = {
            f"{who}_right": [b[0] == c for b, c in zip(best[who], row["text"], strict=True)]
            for who in best
        }
        about = {name: row[name] for name in ("simplification", "split", "sequence")}
        about |= {"rank": None, "number": row["sequence"], "id": None, "start": 1}
        about |= {"value": float(np.mean(row["jsd"])), "same_prediction": float(np.mean(same))}
        about |= {"length": len(row["text"]) + 1, "separate": False, "token": [*row["text"]]}
        lists = {"scored": [True] * len(same), "jsd": row["jsd"], "same": same, **right}
        rows.append(about | lists | best | shares)
    return pl.DataFrame(rows, infer_schema_length=None)


def _first(table: pl.DataFrame) -> pl.DataFrame:
    """The rows that the page has room for: of every cell the worst, then those as they come."""
    place = pl.int_range(pl.len()).over("simplification", "split")
    total = pl.col("token").list.len().cum_sum()
    ordered = table.sort("rank", "sequence", nulls_last=True, maintain_order=True)
    return ordered.with_columns(place=place).filter((total <= MOST_POSITIONS) | (place == 0))


def _text(row: dict[str, Any], codes: _Codes) -> dict[str, Any]:
    return {
        "sequence": row["sequence"],
        "name": row["id"] or f"sequence {row['number']}",
        "start": row["start"],
        "length": row["length"],
        "tokens": _packed(codes.of(row["token"]), "<u4"),
        **_best(row, "model", codes),
    }


def _of_proxy(row: dict[str, Any], codes: _Codes) -> dict[str, Any]:
    bits = [NONE if x is None else round(BITS * x) for x in row["jsd"]]
    flags = np.zeros(len(bits), np.uint8)
    for name, flag in FLAGS.items():
        flags |= np.array(row[name], bool).astype(np.uint8) * np.uint8(flag)
    return {
        "rank": row["rank"],
        "value": round(row["value"], 5),
        "same": round(row["same_prediction"], 5),
        "bits": _packed(bits, "<u2"),
        "flags": _packed(flags, "u1"),
        **_best(row, "proxy", codes),
    }


def _best(row: dict[str, Any], who: str, codes: _Codes) -> dict[str, str]:
    """The likeliest tokens of each position, and their per cent."""
    rest = [""] * TOP
    tokens = [text for best in row[who] for text in [*(best or ()), *rest][:TOP]]
    shares = [p for best in row[f"{who}_p"] for p in [*(best or ()), 0, 0, 0][:TOP]]
    percent = np.round(100 * np.array(shares, float))
    return {who: _packed(codes.of(tokens), "<u4"), f"{who}_p": _packed(percent, "u1")}


def _packed(values: Sequence[float] | np.ndarray[Any, Any], kind: str) -> str:
    return b64encode(np.asarray(values).astype(kind).tobytes()).decode()
