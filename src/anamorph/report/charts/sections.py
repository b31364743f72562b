"""The charts of the report, by the section of the page in which they stand.

To add one, write a file with a function that takes what was found and gives a `Figure`, or None
where the run has no data for it, and name it here, by the name of its figure.
"""

from collections.abc import Callable, Mapping

from anamorph.analysis.findings import Findings
from anamorph.report.charts import facets, heads, inside, kinds, results, verdicts
from anamorph.report.figure import Figure

Make = Callable[[Findings], Figure | None]

CHARTS: dict[str, Mapping[str, Make]] = {
    "cells": {"verdicts": verdicts.matrix},
    "heads": {
        "heads_size": heads.smallest,
        "heads_gap": heads.gaps,
        "heads_scores": heads.against_scores,
    },
    "faithfulness": {"faithfulness": results.against_size, "gaps": verdicts.gap_lines},
    "accuracy": {"accuracy": results.accuracies, "who_is_right": results.who_is_right},
    "where": {
        "gap_by_kind": kinds.gap_by_kind,
        "facets": facets.by_facet,
        "attended": inside.attended,
    },
    "inside": {"key_query": inside.key_query, "attention": inside.attention_maps},
    "training": {"training": facets.training},
}
"""By section the function that draws a figure of each name."""

MAKERS = {name: make for makers in CHARTS.values() for name, make in makers.items()}


def draw(found: Findings) -> dict[str, list[Figure]]:
    """The figures of every section that there are data for."""
    drawn = {
        section: [make(found) for make in makers.values()] for section, makers in CHARTS.items()
    }
    return {section: [f for f in figures if f is not None] for section, figures in drawn.items()}
