"""Simplifications: maps from a site's activations to simpler ones, and where they are put.

To add one, write a file with a subclass of `Simplification`, name it in `registry.py` (or in the
entry-point group `anamorph.simplifications` of a package of your own), and run
`check_simplification` on it.
"""

from anamorph.simplifications.base import Attachment as Attachment
from anamorph.simplifications.base import Chain as Chain
from anamorph.simplifications.base import Simplification as Simplification
from anamorph.simplifications.base import Simplified as Simplified
from anamorph.simplifications.checks import LAWS as LAWS
from anamorph.simplifications.checks import check_simplification as check_simplification
from anamorph.simplifications.estimator import NotFittedError as NotFittedError
from anamorph.simplifications.estimator import Where as Where
from anamorph.simplifications.fitted import FittedProxies as FittedProxies
from anamorph.simplifications.fitted import FittedProxy as FittedProxy
from anamorph.simplifications.fitting import check_proxies as check_proxies
from anamorph.simplifications.fitting import fit as fit
from anamorph.simplifications.methods.kmeans import KMeans as KMeans
from anamorph.simplifications.methods.linear import Linear as Linear
from anamorph.simplifications.methods.low_rank import LowRank as LowRank
from anamorph.simplifications.methods.onehot import OneHot as OneHot
from anamorph.simplifications.methods.projections import PCA as PCA
from anamorph.simplifications.methods.projections import SVD as SVD
from anamorph.simplifications.methods.prune import Prune as Prune
from anamorph.simplifications.methods.quantize import Quantize as Quantize
from anamorph.simplifications.methods.scikit_learn import Estimator as Estimator
from anamorph.simplifications.named import AnotherModel as AnotherModel
from anamorph.simplifications.named import ProxySpec as ProxySpec
from anamorph.simplifications.placing import Placement as Placement
from anamorph.simplifications.placing import first_layer as first_layer
from anamorph.simplifications.placing import placements as placements
from anamorph.simplifications.placing import sites_of as sites_of
from anamorph.simplifications.registry import SIMPLIFICATIONS as SIMPLIFICATIONS
from anamorph.simplifications.registry import simplification_names as simplification_names
from anamorph.simplifications.replacement import Replacement as Replacement
from anamorph.simplifications.spec import Spec as Spec
from anamorph.simplifications.spec import check_readable as check_readable
from anamorph.simplifications.spec import expand as expand
from anamorph.simplifications.spec import find_simplification as find_simplification
from anamorph.simplifications.spec import parse as parse
from anamorph.simplifications.statistics.base import Statistic as Statistic
from anamorph.simplifications.sweeping import Sweep as Sweep
from anamorph.simplifications.sweeping import sweep as sweep
from anamorph.simplifications.weight_change import WeightChange as WeightChange
from anamorph.simplifications.weight_change import changed_matrices as changed_matrices
from anamorph.simplifications.weight_change import changes_weights as changes_weights
