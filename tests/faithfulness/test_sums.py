"""Sums by sequence, facet and level against a dictionary filled in a plain loop."""

from collections import defaultdict

import numpy as np
import pytest
import torch

from anamorph.errors import AnamorphError
from anamorph.faithfulness.metrics import metric_names
from anamorph.faithfulness.sums import CellSums, SumIndex
from anamorph.tasks.base import Facet, Split

METRICS = metric_names()


def random_split(seed=0, sequences=40):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, size=sequences)
    offsets = np.concatenate([[0], lengths.cumsum()])
    scored = rng.random(offsets[-1]) < 0.5
    scored[offsets[:-1]] = False
    codes = [rng.integers(-1, levels, size=offsets[-1]).astype(np.int16) for levels in (3, 5)]
    return Split(
        name="iid",
        role="iid",
        tokens=np.zeros(offsets[-1], np.int16),
        offsets=offsets,
        scored=scored,
        facets={
            "depth": Facet(codes[0], ("one", "two", "three")),
            "kind": Facet(codes[1], tuple("abcde")),
        },
    )


def plain_sums(split, values):
    """{(facet, level, sequence): [tokens, sums of every metric]}."""
    sums, position = defaultdict(lambda: np.zeros(1 + len(values))), 0
    for sequence in range(len(split)):
        for token in range(split.offsets[sequence], split.offsets[sequence + 1]):
            if not split.scored[token]:
                continue
            added = np.concatenate([[1], values[:, position]])
            sums[None, None, sequence] += added
            for name, facet in split.facets.items():
                if facet.codes[token] >= 0:
                    sums[name, facet.names[facet.codes[token]], sequence] += added
            position += 1
    return dict(sums)


def as_dict(cell):
    return {
        (group.facet, group.level, int(cell.index.sequence[row])): np.concatenate(
            [[cell.index.tokens[row]], cell.sums[:, row]]
        )
        for group in cell.index.groups
        for row in range(group.rows.start, group.rows.stop)
    }


def batches_of(split, sizes, rng):
    """Positions of whole sequences, some sequences at a time, in a random order of sequences."""
    sequence = np.repeat(np.arange(len(split)), split.lengths)[split.scored]
    order = rng.permutation(len(split))
    for start in range(0, len(order), sizes):
        some = order[start : start + sizes]
        yield torch.from_numpy(np.concatenate([np.flatnonzero(sequence == s) for s in some]))


@pytest.fixture
def filled():
    split = random_split()
    values = np.random.default_rng(1).random((len(METRICS), split.scored.sum())).astype(np.float32)
    return split, SumIndex.of(split), values


def fill(index, values, batches):
    cell = CellSums(index)
    for positions in batches:
        cell.add_rows(cell.index.rows_at(positions), torch.from_numpy(values)[:, positions])
    return cell


def test_sums_are_those_of_a_plain_loop(filled):
    split, index, values = filled
    cell = fill(index, values, [torch.arange(values.shape[1])])
    expected = plain_sums(split, values.astype(np.float64))
    ours = as_dict(cell)
    assert ours.keys() == expected.keys()
    assert len(index) == len(expected)
    for key, numbers in expected.items():
        np.testing.assert_allclose(ours[key], numbers, rtol=1e-12, err_msg=str(key))


def test_groups_are_ordered_and_cover_every_row(filled):
    _, index, _ = filled
    groups = list(index.groups)
    assert [group[:2] for group in groups] == [
        (None, None),
        *(("depth", level) for level in ("one", "two", "three")),
        *(("kind", level) for level in "abcde"),
    ]
    assert groups[0].rows.start == 0 and groups[-1].rows.stop == len(index)
    assert index.tokens[groups[0].rows].sum() == len(index.rows_of)
    assert index.sequences == 40 > groups[0].rows.stop  # some sequences are not scored


def test_sums_do_not_depend_on_batches(filled):
    split, index, values = filled
    rng = np.random.default_rng(2)
    whole = fill(index, values, [torch.arange(values.shape[1])])
    for size in (1, 7, 40):
        assert torch.equal(fill(index, values, batches_of(split, size, rng)).sums, whole.sums)


def test_to_a_table_and_back(filled):
    _, index, values = filled
    cell = fill(index, values, [torch.arange(values.shape[1])])
    back = CellSums.of(cell.table(), index, "a file")
    assert back.metrics == METRICS
    assert torch.equal(back.sums, cell.sums)
    back.add_rows(
        back.index.rows_at(torch.arange(3)), torch.ones(len(METRICS), 3)
    )  # and may be added to


def test_a_table_of_another_split_or_version_is_refused(filled):
    _, index, _ = filled
    table = CellSums(index).table()
    with pytest.raises(AnamorphError, match=r"a file.*another split"):
        CellSums.of(table, SumIndex.of(random_split(seed=5)), "a file")
    with pytest.raises(AnamorphError, match=r"of another split or version"):
        CellSums.of(table.rename({METRICS[0]: "sameness"}), index, "a file")
