"""Tasks of random tokens, for models that were never trained."""

from typing import Any

import numpy as np

from anamorph.tasks import Split, Task


def random_task(vocabulary: int, sequences: int = 20) -> Task:
    """Sequences of 4 to 12 random tokens, each but the first to be predicted."""
    rng = np.random.default_rng(0)

    def split(name: str, role: Any) -> Split:
        lengths = rng.integers(4, 13, sequences)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        scored = np.ones(offsets[-1], dtype=bool)
        scored[offsets[:-1]] = False
        tokens = rng.integers(0, vocabulary, offsets[-1]).astype(np.int32)
        return Split(name, role, tokens, offsets, scored)

    splits = [split("train", "train"), split("iid", "iid"), split("far", "ood")]
    names = tuple(map(str, range(vocabulary)))
    return Task("random", {}, names, np.arange(vocabulary), {s.name: s for s in splits})
