"""What a report says of the Dyck task."""

from collections.abc import Mapping
from typing import Any

from anamorph.tasks.about import About, Choice

SEEN = {
    "sentence": "occurs in train",
    "segment": "is made of top-level segments that occur in train",
}


def about(spec: Mapping[str, Any]) -> About:
    """What a report says of the task with these arguments."""
    choices = (
        Choice(
            what="Longest sentence",
            choice=f"{spec['max_length']} brackets, in every split; longer ones are drawn again",
            why=(
                "Attention is quadratic in length. At k=20, m=10 and 510 brackets this drops 0.3 % "
                "of the training sample, but 27 % of the sentences deeper than 10: unseen depths "
                "are those of the shorter deep sentences."
            ),
        ),
        Choice(
            what="Seen structure",
            choice=(
                f"fresh sentences whose skeleton {SEEN[spec['structure']]}; mostly short ones, as "
                "long skeletons hardly repeat"
            ),
            why=(
                "The paper follows Murty et al. 2023; the rule is an option (task.structure). With "
                "structure=segment and scored=closers, the split seen_structure is their "
                "in-distribution set."
            ),
        ),
        Choice(
            what="Test sentences",
            choice="only those with a scored position, in every split but train",
            why=(
                "The others say nothing about any metric. Those left are longer: at k=20, m=10 and "
                "far closers 88 brackets in the mean of iid, against 49 in train."
            ),
        ),
        Choice(
            what="Unseen depth",
            choice=(
                f"depth {spec['m'] + 1} to {2 * spec['m']}, from a sampler of twice the depth; a "
                "second split has the lengths of unseen_long, sentence by sentence"
            ),
            why="Deeper sentences are longer; the matched split separates depth from length.",
        ),
    )
    return About(
        facts=(f"k = {spec['k']}", f"m = {spec['m']}"),
        choices=choices,
        labels={"depth": "key depth (depth of the opener)"},
        borders={"depth": str(spec["m"])},
        matched="depth",
        averages="In Dyck most scored positions of a plain iid sample lie in long sentences of "
        "unseen structure (at k = 20, m = 10 some 94 % of far closers lie in unseen skeletons "
        "longer than 32), so pooled iid must look like unseen long; the per-sequence mean does "
        "not.",
    )
