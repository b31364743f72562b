"""Functions in several programming languages, with the kind of every token."""

from anamorph.corpora.corpus import (
    Corpus,
    cache_folder,
    from_codesearchnet,
    from_folders,
    from_recipe,
)

__all__ = [
    "Corpus",
    "cache_folder",
    "from_codesearchnet",
    "from_folders",
    "from_recipe",
]
