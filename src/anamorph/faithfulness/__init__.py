"""Faithfulness: how far a proxy agrees with its model, in and out of distribution.

`metrics` says what is compared at a position, `comparison` does it for many proxies in few passes,
`sums` adds this up by sequence, `bootstrap` makes intervals from the sums, `confidence` makes
intervals at which one may stop early, `gaps` judges what changes out of distribution, `tables`
writes it all down, and `levels` breaks a gap down by a facet.
"""

from anamorph.faithfulness.bootstrap import (
    interval,
    p_value,
    replicates,
    seed_replicates,
    weights,
)
from anamorph.faithfulness.comparison import ModelOutput, position_metrics
from anamorph.faithfulness.confidence import RatioSequence
from anamorph.faithfulness.gaps import Thresholds, benjamini_hochberg, verdict
from anamorph.faithfulness.levels import level_gaps
from anamorph.faithfulness.metrics import (
    HIGHER_IS_BETTER,
    METRICS,
    metric_names,
)
from anamorph.faithfulness.sums import CellSums, Group, SumIndex
from anamorph.faithfulness.tables import CellKey, ProxyInfo, tabulate

__all__ = [
    "HIGHER_IS_BETTER",
    "METRICS",
    "CellKey",
    "CellSums",
    "Group",
    "ModelOutput",
    "ProxyInfo",
    "RatioSequence",
    "SumIndex",
    "Thresholds",
    "benjamini_hochberg",
    "interval",
    "level_gaps",
    "metric_names",
    "p_value",
    "position_metrics",
    "replicates",
    "seed_replicates",
    "tabulate",
    "verdict",
    "weights",
]
