"""The simplifications that a spec can name: our own, and those that installed packages add."""

from importlib.metadata import entry_points

from anamorph.errors import AnamorphError
from anamorph.simplifications.base import Simplification
from anamorph.simplifications.methods.kmeans import KMeans
from anamorph.simplifications.methods.onehot import OneHot
from anamorph.simplifications.methods.pca import PCA
from anamorph.simplifications.methods.svd import SVD

SIMPLIFICATIONS: dict[str, type[Simplification]] = {
    "kmeans": KMeans,
    "onehot": OneHot,
    "pca": PCA,
    "svd": SVD,
}

ENTRY_POINTS = "anamorph.simplifications"
"""The entry-point group in which a package names its own: `svq = "package.module:SVQ"`."""


def find_simplification(name: str) -> type[Simplification]:
    """The class of a name; other packages are only imported for a name that is not ours.

    Raises:
        AnamorphError: if there is none, or if what a package offers is no simplification.
    """
    if name in SIMPLIFICATIONS:
        return SIMPLIFICATIONS[name]
    for entry in entry_points(group=ENTRY_POINTS, name=name):
        found = entry.load()
        if not (isinstance(found, type) and issubclass(found, Simplification)):
            raise AnamorphError(
                f"The entry point {name!r} ({entry.value}) is no subclass of Simplification; "
                "mend or uninstall the package that offers it."
            )
        if found.name != name:
            raise AnamorphError(
                f"The entry point {name!r} ({entry.value}) calls itself {found.name!r}; "
                "the two names must be the same."
            )
        return found
    raise AnamorphError(
        f"There is no simplification {name!r}; there are: {', '.join(simplification_names())}."
    )


def simplification_names() -> list[str]:
    """The names that a spec can use, sorted."""
    return sorted({*SIMPLIFICATIONS, *(e.name for e in entry_points(group=ENTRY_POINTS))})
