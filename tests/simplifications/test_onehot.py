"""One-hot attention on hand-written patterns."""

import torch

from anamorph.simplifications import OneHot


def test_one_at_the_arg_max_and_the_first_of_ties() -> None:
    pattern = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.8, 0.0], [0.4, 0.2, 0.4]])
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert torch.equal(OneHot()(pattern), expected)
    assert torch.equal(OneHot()(pattern.expand(2, 4, 3, 3)), expected.expand(2, 4, 3, 3))


def test_no_query_attends_to_its_future() -> None:
    scores = torch.randn(5, 8, 8, generator=torch.Generator().manual_seed(0))
    future = torch.ones(8, 8, dtype=torch.bool).triu(1)
    pattern = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
    assert OneHot()(pattern)[:, future].sum() == 0


def test_there_is_nothing_to_fit() -> None:
    onehot = OneHot()
    assert onehot.fit(torch.rand(4, 8)).state_dict() == {}
    assert onehot.size is None
