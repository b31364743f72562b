"""The simplifications that a spec can name: our own, of installed packages, and registered ones.

It says where a class lies and does not import it, so that nothing here depends on a method.
"""

from importlib.metadata import EntryPoint, entry_points

from anamorph.errors import AnamorphError
from anamorph.registered import registered
from anamorph.simplifications.estimator import Fittable

METHODS = "anamorph.simplifications.methods"

SIMPLIFICATIONS: dict[str, type[Fittable] | str] = {
    "clt": f"{METHODS}.clt:CLT",
    "concepts": f"{METHODS}.concepts:Concepts",
    "estimator": f"{METHODS}.scikit_learn:Estimator",
    "frozen": f"{METHODS}.frozen:Frozen",
    "kmeans": f"{METHODS}.kmeans:KMeans",
    "linear": f"{METHODS}.linear:Linear",
    "low_rank": f"{METHODS}.low_rank:LowRank",
    "mean": f"{METHODS}.ablations:Mean",
    "onehot": f"{METHODS}.onehot:OneHot",
    "pca": f"{METHODS}.projections:PCA",
    "projection": f"{METHODS}.projection:GivenProjection",
    "prune": f"{METHODS}.prune:Prune",
    "quantize": f"{METHODS}.quantize:Quantize",
    "random": f"{METHODS}.projections:Random",
    "resample": f"{METHODS}.ablations:Resample",
    "sae": f"{METHODS}.sae:SAE",
    "svd": f"{METHODS}.projections:SVD",
    "topk_attention": f"{METHODS}.attention:TopKAttention",
    "topk_sae": f"{METHODS}.topk:TopKSAE",
    "topk_transcoder": f"{METHODS}.topk:TopKTranscoder",
    "transcoder": f"{METHODS}.transcoder:Transcoder",
    "window": f"{METHODS}.attention:Window",
    "zero": f"{METHODS}.ablations:Zero",
}
"""By name a class, or where it is: `module:class`, as in an entry point."""

ENTRY_POINTS = "anamorph.simplifications"
"""The entry-point group in which a package names its own: `svq = "package.module:SVQ"`."""


def find_class(name: str) -> type[Fittable]:
    """The class of a name; another package is imported only for a name that is not ours.

    Raises:
        AnamorphError: if nothing has this name, or what has it is not a simplification.
    """
    ours = SIMPLIFICATIONS.get(name)
    if isinstance(ours, type):
        return ours
    at_home = [EntryPoint(name, ours, ENTRY_POINTS)] if ours else []
    here = [part for part in registered(ENTRY_POINTS) if part.name == name]
    for entry in at_home or here or entry_points(group=ENTRY_POINTS, name=name):
        found = entry.load()
        if not (isinstance(found, type) and issubclass(found, Fittable)):
            raise AnamorphError(
                f"The entry point {name!r} ({entry.value}) is not a subclass of Simplification; "
                "mend or uninstall the package that offers it."
            )
        if found.name != name:
            raise AnamorphError(
                f"The entry point {name!r} ({entry.value}) calls itself {found.name!r}; "
                "the two names must be the same."
            )
        return found
    hint = "One in a file of your own needs --plugin FILE, or in Python am.register."
    if name == "identity":
        hint = "The identity is in every audit; leave it out."
    raise AnamorphError(
        f"There is no simplification {name!r}; there are: {', '.join(simplification_names())}. "
        + hint
    )


def simplification_names() -> list[str]:
    """The names that a spec can use, sorted."""
    offered = (*entry_points(group=ENTRY_POINTS), *registered(ENTRY_POINTS))
    return sorted({*SIMPLIFICATIONS, *(part.name for part in offered)})
