"""Samples of Dyck."""

from anamorph.tasks.dyck.sampler import Sentences, first, stream


def sample(count: int, k: int = 20, m: int = 10, seed: int = 0) -> Sentences:
    return first(stream(k, m, seed), count)
