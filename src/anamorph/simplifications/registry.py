"""The simplifications that a spec can name: our own, and those that installed packages add.

It says where a class lies and does not import it, so that nothing here depends on a method.
"""

from importlib.metadata import EntryPoint, entry_points

from anamorph.errors import AnamorphError

METHODS = "anamorph.simplifications.methods"

SIMPLIFICATIONS: dict[str, type | str] = {
    "kmeans": f"{METHODS}.kmeans:KMeans",
    "onehot": f"{METHODS}.onehot:OneHot",
    "pca": f"{METHODS}.pca:PCA",
    "svd": f"{METHODS}.svd:SVD",
}
"""By name a class, or where it is: `module:class`, as in an entry point."""

ENTRY_POINTS = "anamorph.simplifications"
"""The entry-point group in which a package names its own: `svq = "package.module:SVQ"`."""


def find_named(name: str) -> object:
    """What a name stands for; another package is imported only for a name that is not ours.

    Raises:
        AnamorphError: if nothing has this name.
    """
    ours = SIMPLIFICATIONS.get(name)
    if isinstance(ours, type):
        return ours
    if ours is not None:
        return EntryPoint(name, ours, ENTRY_POINTS).load()
    for entry in entry_points(group=ENTRY_POINTS, name=name):
        return entry.load()
    raise AnamorphError(
        f"There is no simplification {name!r}; there are: {', '.join(simplification_names())}."
    )


def simplification_names() -> list[str]:
    """The names that a spec can use, sorted."""
    return sorted({*SIMPLIFICATIONS, *(e.name for e in entry_points(group=ENTRY_POINTS))})
