"""The interface of fits by a streamed optimisation, by a linear map that is trained by SGD."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.models.base import Batch
from anamorph.models.decoder import Decoder, DecoderConfig
from anamorph.models.sites import Site
from anamorph.simplifications import (
    SIMPLIFICATIONS,
    Replacement,
    check_simplification,
    expand,
    fit,
)
from anamorph.simplifications.streamed import Streamed


class BySGD(Streamed):
    """A linear map onto itself, from a random start, by plain gradient descent on its error."""

    name = "bysgd"

    def __init__(self, *, seed: int = 0, batch: int = 16, rate: float = 0.01) -> None:
        self.seed = seed
        self.batch = batch
        self.rate = rate

    def begin(self, dims: Sequence[int], random: torch.Generator) -> None:
        shape = (dims[0], dims[-1])
        self._weight = torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_()

    def step(self, points: Tensor) -> None:
        read = self._weight.shape[0]
        error = points[:, :read].double() @ self._weight - points[:, -self._weight.shape[1] :]
        (gradient,) = torch.autograd.grad(error.square().mean(dim=0).sum(), self._weight)
        self._weight = (self._weight - self.rate * gradient).detach().requires_grad_()

    def end(self) -> None:
        self.weight_ = self._weight.float()
        self.steps_ = torch.tensor([7], dtype=torch.int8)

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight_.to(x)


class ReplacedBySGD(BySGD, Replacement):
    name = "replacedbysgd"

    def reads(self, site: Site) -> tuple[Site, ...]:
        return (Site(site.layer - 1, site.head, site.kind),)


def by_hand(x: Tensor, y: Tensor, seed: int, rate: float) -> Tensor:
    """The gradient of the mean squared error written down, batch by batch of 16."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(x.shape[1], y.shape[1], generator=random, dtype=torch.float64)
    for start in range(0, len(x), 16):
        some, wanted = x[start : start + 16].double(), y[start : start + 16].double()
        weight = weight - rate * 2 * some.T @ (some @ weight - wanted) / len(some)
    return weight.float()


@pytest.fixture
def points() -> Tensor:
    return torch.randn(200, 5, generator=torch.Generator().manual_seed(3))


def test_steps_are_those_written_by_hand(points: Tensor) -> None:
    fitted = BySGD(seed=4, rate=0.05).fit(points)
    torch.testing.assert_close(fitted.weight_, by_hand(points, points, 4, 0.05))
    assert fitted.weight_.dtype == torch.float32 and fitted.steps_.dtype == torch.int8


@pytest.mark.parametrize("size", [1, 7, 16, 33, 200])
def test_steps_do_not_depend_on_how_the_stream_is_cut(points: Tensor, size: int) -> None:
    with torch.inference_mode():  # as points are recorded
        recorded = points.clone()
    streamed = BySGD()
    statistic = streamed.statistic(5)
    with torch.no_grad():
        for chunk in torch.split(recorded, size):
            statistic.update(chunk)
    assert torch.equal(streamed.learn(statistic).weight_, BySGD().fit(points).weight_)


def test_a_seed_says_which_start(points: Tensor) -> None:
    state = torch.random.get_rng_state()
    one, other = (BySGD(seed=seed).fit(points).weight_ for seed in (0, 1))
    assert not torch.equal(one, other)
    assert torch.equal(one, BySGD(seed=0).fit(points).weight_)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_replacement_can_be_fitted_so(points: Tensor) -> None:
    written = torch.tanh(points[:, :3])
    fitted = ReplacedBySGD(seed=2).fit(points, written)
    torch.testing.assert_close(fitted.weight_, by_hand(points, written, 2, 0.01))
    check_simplification(ReplacedBySGD())


def test_it_keeps_the_laws_also_in_a_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    check_simplification(BySGD())
    monkeypatch.setitem(SIMPLIFICATIONS, "bysgd", BySGD)
    check_simplification(BySGD() + BySGD(seed=1))


class Threads(Streamed):
    """Learns how many threads it had, and how many torch had meanwhile."""

    name = "threads"

    def __init__(self, *, seed: int = 0, batch: int = 16) -> None:
        self.seed = seed
        self.batch = batch

    def begin(self, dims: Sequence[int], random: torch.Generator) -> None:
        pass

    def step(self, points: Tensor) -> None:
        self._had = [self.threads, torch.get_num_threads()]

    def end(self) -> None:
        self.had_ = torch.tensor(self._had)

    def __call__(self, x: Tensor) -> Tensor:
        return x


def test_a_learner_has_the_threads_that_torch_had(points: Tensor) -> None:
    tokens = torch.randint(0, 9, (8, 5), generator=torch.Generator().manual_seed(0))
    model = Decoder(DecoderConfig(vocabulary=9, context=5, width=8))
    batches = {"train": [Batch(tokens, torch.ones_like(tokens).bool())]}
    proxies = expand(Threads() @ "0.mlp")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        (fitted,) = fit(model, proxies, batches).values()
        assert [simple.had_.tolist() for simple in fitted.by_site.values()] == [[3, 1]]
        assert Threads().fit(points).had_.tolist() == [3, 1]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_no_points() -> None:
    with pytest.raises(AnamorphError, match="bysgd: there are no points to fit to"):
        BySGD().fit(torch.empty(0, 5))
    with pytest.raises(AnamorphError, match="batch must be a whole number, 1 or more"):
        BySGD(batch=0) @ "0.mlp"
