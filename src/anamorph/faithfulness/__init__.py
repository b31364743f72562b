"""Faithfulness: how far a proxy agrees with its model, in and out of distribution.

`metrics` says what is compared at a position, `comparison` does it for many proxies in few passes,
`sums` adds this up by sequence, `intervals` makes intervals and p-values from the sums, and
`confidence` intervals at which one may stop early; `estimates` has them for many cells, `contrasts`
for the levels of a facet; `gaps` says what a gap means, `judging` corrects for how many there are;
`measuring` goes through the cells of a split, `tables` writes it all down, and `levels` breaks a
gap down by a facet.
"""

from anamorph.faithfulness.comparison import ModelOutput, position_metrics
from anamorph.faithfulness.confidence import RatioSequence
from anamorph.faithfulness.estimates import Stopping
from anamorph.faithfulness.gaps import Thresholds, benjamini_hochberg, verdict
from anamorph.faithfulness.intervals import Differences, Means
from anamorph.faithfulness.levels import level_gaps
from anamorph.faithfulness.measuring import CellKey, ProxyInfo
from anamorph.faithfulness.metrics import (
    HIGHER_IS_BETTER,
    METRICS,
    metric_names,
)
from anamorph.faithfulness.sums import CellSums, Group, SumIndex
from anamorph.faithfulness.tables import Tables, tabulate

__all__ = [
    "HIGHER_IS_BETTER",
    "METRICS",
    "CellKey",
    "CellSums",
    "Differences",
    "Group",
    "Means",
    "ModelOutput",
    "ProxyInfo",
    "RatioSequence",
    "Stopping",
    "SumIndex",
    "Tables",
    "Thresholds",
    "benjamini_hochberg",
    "level_gaps",
    "metric_names",
    "position_metrics",
    "tabulate",
    "verdict",
]
