"""Simplifications: maps from a site's activations to simpler ones, and where they are put.

To add one, write a file with a subclass of `Simplification`, name it in `registry.py` (or in the
entry-point group `anamorph.simplifications` of a package of your own), and run
`check_simplification` on it.
"""

from anamorph.simplifications.base import (
    Attachment,
    Chain,
    Simplification,
    Simplified,
    find_simplification,
)
from anamorph.simplifications.checks import LAWS, check_simplification
from anamorph.simplifications.estimator import NotFittedError
from anamorph.simplifications.fitted import FittedProxies, FittedProxy
from anamorph.simplifications.fitting import check_proxies, fit
from anamorph.simplifications.methods.kmeans import KMeans
from anamorph.simplifications.methods.linear import Linear
from anamorph.simplifications.methods.onehot import OneHot
from anamorph.simplifications.methods.pca import PCA
from anamorph.simplifications.methods.projection import Projection
from anamorph.simplifications.methods.svd import SVD
from anamorph.simplifications.named import AnotherModel, ProxySpec
from anamorph.simplifications.placing import first_layer, sites_of
from anamorph.simplifications.registry import SIMPLIFICATIONS, simplification_names
from anamorph.simplifications.replacement import Replacement
from anamorph.simplifications.spec import Spec, check_readable, expand, parse
from anamorph.simplifications.statistics.base import Statistic
from anamorph.simplifications.sweeping import Sweep, sweep

__all__ = [
    "LAWS",
    "PCA",
    "SIMPLIFICATIONS",
    "SVD",
    "AnotherModel",
    "Attachment",
    "Chain",
    "FittedProxies",
    "FittedProxy",
    "KMeans",
    "Linear",
    "NotFittedError",
    "OneHot",
    "Projection",
    "ProxySpec",
    "Replacement",
    "Simplification",
    "Simplified",
    "Spec",
    "Statistic",
    "Sweep",
    "check_proxies",
    "check_readable",
    "check_simplification",
    "expand",
    "find_simplification",
    "first_layer",
    "fit",
    "parse",
    "simplification_names",
    "sites_of",
    "sweep",
]
