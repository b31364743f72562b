"""The charts of the report, by the section of the page in which they stand.

To add one, write a file with a function that takes what was found and gives a `Figure`, or None
where the run has no data for it, and name it here.
"""

from collections.abc import Callable

from anamorph.analysis.findings import Findings
from anamorph.report.charts import facets, heads, inside, kinds, results, verdicts
from anamorph.report.figure import Figure

CHARTS: dict[str, tuple[Callable[[Findings], Figure | None], ...]] = {
    "cells": (verdicts.matrix,),
    "heads": (heads.smallest, heads.gaps, heads.against_scores),
    "faithfulness": (results.against_size, verdicts.gap_lines),
    "accuracy": (results.accuracies, results.who_is_right),
    "where": (kinds.gap_by_kind, facets.by_facet, inside.attended),
    "inside": (inside.key_query, inside.attention_maps),
    "training": (facets.training,),
}


def draw(found: Findings) -> dict[str, list[Figure]]:
    """The figures of every section that there are data for."""
    drawn = {section: [make(found) for make in makers] for section, makers in CHARTS.items()}
    return {section: [f for f in figures if f is not None] for section, figures in drawn.items()}
