"""Functions in several programming languages, with the kind of every token."""

from anamorph.corpora.corpus import (
    Corpus,
    Watch,
    cache_folder,
    from_codesearchnet,
    from_folders,
    from_recipe,
    quiet,
)

__all__ = [
    "Corpus",
    "Watch",
    "cache_folder",
    "from_codesearchnet",
    "from_folders",
    "from_recipe",
    "quiet",
]
