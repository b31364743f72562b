"""What a report says of the code completion task."""

from collections.abc import Mapping
from typing import Any

from anamorph.tasks.about import About, Choice


def about(spec: Mapping[str, Any]) -> About:
    """What a report says of the task with these arguments and findings."""
    corpus = spec["corpus"]
    if not isinstance(corpus, str):
        corpus = "folders: " + ", ".join(f"{path} ({name})" for name, path in corpus.items())
    choices = (
        Choice(
            what="Training language and corpus",
            choice=f"{spec['language']}, {corpus} (checksum {spec['made'][:16]})",
            why="Not known of the paper, which names CodeSearchNet.",
        ),
        Choice(
            what="Sequences",
            choice=(
                f"START and a function's first {spec['context'] - 1} {spec['unit']}; every split "
                "has the lengths of iid, function by function, where there are enough functions"
            ),
            why="Longer functions are not longer sequences, and lengths do not make the gaps.",
        ),
        Choice(
            what="In distribution",
            choice="functions held out of every repository that is trained on",
            why="CodeSearchNet's own partitions share no repository, so its test is another split.",
        ),
        Choice(
            what="Duplicates",
            choice=(
                "test functions that train has, but for white space, or for names and literals, "
                "are left out"
            ),
            why="A fifth and more of the functions of another Java repository are such clones.",
        ),
        Choice(
            what="Rare characters",
            choice="those that train has fewer than 20 times are one token, which is scored too",
            why="Other languages have characters that the model hardly knows; a facet marks them.",
        ),
    )
    return About(checksum=spec["made"], choices=choices)
