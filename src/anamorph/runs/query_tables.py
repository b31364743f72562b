"""The tables that a question across runs may ask of: their columns, and how they are made of files.

Nothing here imports polars: it is read by the process that answers, which starts quickly.
"""

from collections.abc import Iterable, Mapping, Sequence

TEXT, NUMBER, WHOLE, TRUTH = "VARCHAR", "DOUBLE", "BIGINT", "BOOLEAN"

_PROXY = {
    "simplification": (TEXT, "the proxy, as a spec string; identity is the model itself"),
    "method": (TEXT, "such as svd or kmeans"),
    "family": (TEXT, "the spec string without the size"),
    "size_name": (TEXT, "what the size is called, such as rank; null if there is none"),
    "size": (NUMBER, "how large it is"),
    "control": (TEXT, "what it is a control for: oracle, half, random; null of a view"),
    "sites": (TEXT, "where it stands, such as 1.*.{query,key}"),
}
_RUN = {"run": (TEXT, "the run: the last part of its path, or more where two would be alike")}
_CELL = {
    **_RUN,
    "seed": (WHOLE, "the model's; null: all models of the run together"),
    **_PROXY,
    "split": (TEXT, "such as iid or unseen_depth"),
    "role": (TEXT, "of the split: iid or ood"),
}
_LEVEL = {
    "facet": (TEXT, "by what the split is broken down; null: the whole split"),
    "level": (TEXT, "which part of it"),
}
_ENDS = {"low": (NUMBER, "end of the 95 % interval"), "high": (NUMBER, "the other end")}
_COUNTS = {
    "tokens": (WHOLE, "scored positions"),
    "sequences": (WHOLE, "with at least one of them"),
}
_METRIC = {"metric": (TEXT, "such as same_prediction")}
_VERDICT = {
    "p_value": (NUMBER, "of: there is no gap; corrected for how many there are"),
    "verdict": (TEXT, "such as faithful, illusion (under-generalizes), undecided"),
    "needed": (WHOLE, "sequences that would decide, if it is undecided"),
}
JUDGED = "same_prediction"
METRICS = (
    *(JUDGED, "output_jsd", "output_kl", "attention_jsd", "same_attention"),
    *("model_accuracy", "proxy_accuracy", "model_cross_entropy", "proxy_cross_entropy"),
    *("model_only_right", "proxy_only_right", "different_errors", "flips"),
)
"""The metrics that have a column in `cells`; others are in `results`."""

TABLES: dict[str, dict[str, tuple[str, str]]] = {
    "cells": {
        **_CELL,
        **_COUNTS,
        **{name: (NUMBER, "of the whole split; null if not measured") for name in METRICS},
        "gap": (NUMBER, f"in {JUDGED}: that of the reference less that of the split"),
        "gap_low": _ENDS["low"],
        "gap_high": _ENDS["high"],
        **_VERDICT,
    },
    "gaps": {
        **_CELL,
        **_METRIC,
        "reference": (TEXT, "the split that gaps are measured against"),
        "iid": (NUMBER, "the value on it"),
        "ood": (NUMBER, "the value on the split"),
        "gap": (NUMBER, "how much less faithful, or worse, the proxy is on the split"),
        **_ENDS,
        "low_all": (NUMBER, "end of an interval that holds for all gaps of the metric at once"),
        "high_all": (NUMBER, "the other end"),
        "p_value": _VERDICT["p_value"],
        "level": (TEXT, f"whether it looks right on the reference; of {JUDGED}, as what follows"),
        "change": (TEXT, "from the reference to the split"),
        "verdict": _VERDICT["verdict"],
        "needed": _VERDICT["needed"],
    },
    "results": {
        **_CELL,
        **_LEVEL,
        **_METRIC,
        "value": (NUMBER, "the mean over scored positions"),
        **_ENDS,
        "interval": (TEXT, "how it was made: exact, binomial, t, sequence"),
        **_COUNTS,
    },
    "contrasts": {
        **_CELL,
        **_LEVEL,
        **_METRIC,
        "value": (NUMBER, "the level less the other levels of its facet"),
        **_ENDS,
        "error": (NUMBER, "standard error"),
        **_COUNTS,
    },
    "sites": {
        **_RUN,
        "seed": (WHOLE, "the model's"),
        "simplification": _PROXY["simplification"],
        "split": _CELL["split"],
        "role": _CELL["role"],
        "site": (TEXT, "such as 1.0.query"),
        "explained_variance": (NUMBER, "of the site, by the proxy"),
        "l0": (NUMBER, "features that are on at a position, in the mean; of autoencoders"),
        "dead": (NUMBER, "share of features that are never on; likewise"),
        **_COUNTS,
    },
    "specs": {
        **_RUN,
        "path": (TEXT, "of the run folder"),
        "finished": (TRUTH, "whether it has results"),
        "anamorph": (TEXT, "the version that made it"),
        "study": (TEXT, "such as dyck"),
        "preset": (TEXT, "such as demo"),
        "task": (TEXT, "the task's name"),
        "model": (TEXT, "the name of a model that was given"),
        "layers": (WHOLE, "of the model"),
        "heads": (WHOLE, "a layer"),
        "width": (WHOLE, "of the residual stream"),
        "steps": (WHOLE, "of training; null if the model was given"),
        "seeds": (WHOLE, "how many models there are"),
        "sequences": (WHOLE, "audited of a split, at most"),
        "device": (TEXT, "such as cpu"),
        "matmul_precision": (TEXT, "of products of float32 matrices"),
        "torch": (TEXT, "its version"),
        "commit": (TEXT, "of a checkout of anamorph"),
    },
    "settings": {
        **_RUN,
        "key": (TEXT, "a place in spec.json, such as training.learning_rate"),
        "value": (TEXT, "a text as it is, anything else as JSON"),
    },
}
"""By table and column its type and what it is."""

OF_FILES = ("results", "gaps", "contrasts", "sites")
"""Tables that are files of runs; `specs` and `settings` are made of spec.json."""

NEEDED = {"cells": ("results", "gaps")}
"""Tables that another one is made of."""

KEYS = ("simplification", "split")  # without which a file is no table of a run
PLACE = "anamorph_run"  # in the names of folders, before the number of a run

_WHOLE = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT"}
_WHOLE |= {f"U{kind}" for kind in _WHOLE}
_TAKEN = {TEXT: {TEXT}, NUMBER: {NUMBER, "FLOAT"} | _WHOLE, WHOLE: _WHOLE}
_NOTHING = '"NULL"'  # the type of a column in which nothing is

Schema = tuple[tuple[str, str], ...]
"""The columns of a file, each with its type in DuckDB."""


def fault(table: str, schema: Schema) -> str | None:
    """Why a file of these columns is no such table of a run; None if it is one."""
    found = dict(schema)
    if missing := [name for name in KEYS if name not in found]:
        return f"it has no column {' and no column '.join(missing)}"
    for name, (kind, _) in TABLES[table].items():
        if name in found and found[name] not in {_NOTHING, *_TAKEN[kind]}:
            return f"its column {name} is of type {found[name]}; expected {kind}"
    return None


def of_files(table: str, files: Mapping[Schema, Sequence[str]], runs: Sequence[str]) -> str:
    """The SQL of a table that lies in files.

    Args:
        table: one of `OF_FILES`.
        files: their paths, by what columns they have; each in a folder `PLACE=N`.
        runs: what the run of each number is called.
    """
    names = ", ".join(map(literal, runs))
    parts = []
    for schema, paths in files.items():
        found, chosen = dict(schema), [f"([{names}]::VARCHAR[])[{PLACE} + 1] AS run"]
        for name, (kind, _) in list(TABLES[table].items())[1:]:
            value = f'"{name}"' if name in found else "NULL"
            chosen.append(value if found.get(name) == kind else f'{value}::{kind} AS "{name}"')
        parts.append(
            f"SELECT {', '.join(chosen)} FROM read_parquet([{', '.join(map(literal, paths))}], "
            f"hive_partitioning = true, hive_types = {{'{PLACE}': INTEGER}})"
        )
    return " UNION ALL ".join(parts) if parts else _empty(table)


def of_cells() -> str:
    """The SQL of `cells`: whole splits, a column a metric, with the gap and the verdict."""
    same = f"FILTER (metric = {literal(JUDGED)})"
    told = ("method", "family", "size_name", "size", "control", "sites", "role")
    columns = [f"any_value({name}) AS {name}" for name in told]
    columns += [f"max({name}) {same} AS {name}" for name in ("tokens", "sequences")]
    columns += [f"max(value) FILTER (metric = {literal(name)}) AS {name}" for name in METRICS]
    gaps = "gap, low AS gap_low, high AS gap_high, p_value, verdict, needed"
    return f"""
        SELECT {", ".join(f'"{name}"' for name in TABLES["cells"])} FROM (
            SELECT run, seed, simplification, split, {", ".join(columns)}
            FROM results WHERE facet IS NULL GROUP BY run, seed, simplification, split
        ) LEFT JOIN (
            SELECT run AS r, seed AS s, simplification AS p, split AS q, {gaps}
            FROM gaps WHERE metric = {literal(JUDGED)}
        ) ON run = r AND simplification = p AND split = q AND seed IS NOT DISTINCT FROM s"""


def _empty(table: str) -> str:
    columns = (f'NULL::{kind} AS "{name}"' for name, (kind, _) in TABLES[table].items())
    return f"SELECT {', '.join(columns)} WHERE false"


def literal(text: str) -> str:
    """A text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


def with_needed(tables: Iterable[str]) -> list[str]:
    """Tables, and before each those that it is made of."""
    return [x for table in tables for x in (*NEEDED.get(table, ()), table)]
