"""How far numbers can be trusted: the identity as a proxy, and what rounding alone does."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from anamorph.faithfulness.metrics import all_metrics


def self_checks(
    results: pl.DataFrame, noise: Sequence[Mapping[str, Any]], halved: int = 0
) -> dict[str, Any]:
    """The worst numbers of the identity proxy, and the noise floor.

    Args:
        results: of a run.
        noise: of each seed `anamorph.auditing.noise.noise_floor`, as `floor`, and `rounding`.
        halved: how many cells did not fit the memory whole.

    Returns:
        `identity`: metric to worst value, of metrics that compare proxy and model; `noise_floor`:
        the same over the seeds, with the spec string, or None if none was measured; `rounding`: the
        largest difference of logits, and the positions and ties of all seeds; `halved`.
    """
    compare = [m.name for m in all_metrics().values() if m.about == "both" and m.better]
    identity = results.filter(pl.col("facet").is_null(), method="identity")
    values = {str(m): rows["value"].to_list() for (m,), rows in identity.group_by("metric")}
    floors = [each["floor"] for each in noise if each["floor"]]
    rounded = [each["rounding"] for each in noise]
    floor = {"simplification": floors[0]["simplification"]} if floors else None
    return {
        "identity": _worst(values, compare),
        "noise_floor": floor and floor | worst_floor(noise, compare),
        "rounding": {
            "logits": max(r["logits"] for r in rounded),
            "positions": sum(r["positions"] for r in rounded),
            "ties": sum(r["ties"] for r in rounded),
        },
        "halved": halved,
    }


def worst_floor(
    noise: Sequence[Mapping[str, Any]], metrics: Sequence[str] | None = None
) -> dict[str, float]:
    """What rounding alone does to each metric, in the worst of the seeds; empty if not measured.

    Args:
        noise: of each seed, as for `self_checks`.
        metrics: of which to say it; of all if not given.
    """
    floors = [each["floor"] for each in noise if each["floor"]]
    values = {name: [floor[name] for floor in floors] for name in (floors[0] if floors else ())}
    return _worst(values, list(all_metrics()) if metrics is None else metrics)


def _worst(values: Mapping[str, Sequence[float]], metrics: Sequence[str]) -> dict[str, float]:
    return {name: all_metrics()[name].worst(values[name]) for name in metrics if name in values}
