"""Ten ways of being wrong: which error each gives, of the check or of the engine."""

import time
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import anamorph as am
from anamorph.models.base import Context, Edits, Ran, State
from anamorph.simplifications import PCA, SIMPLIFICATIONS, Simplification, check_simplification
from anamorph.tasks import Task
from plain import small_model


class Wrong(PCA):
    """A PCA, of which one thing is wrong in each class below."""

    name = "wrong"

    def affine(self) -> None:  # type: ignore[override]
        return None

    def __call__(self, x: Tensor) -> Tensor:
        matrix = self.components_.T @ self.components_
        return (x - self.mean_.to(x)) @ matrix.to(x) + self.mean_.to(x)


class LeaksTheFuture(Wrong):
    def apply(self, x: Tensor, *, context: Context) -> Tensor:
        total = (x * context.mask[..., None]).sum(dim=1, keepdim=True)
        return self(x) + total / context.mask.sum(dim=1)[:, None, None]


class AttendsToTheFuture(Simplification):
    name = "wrong"
    kinds: ClassVar[frozenset[str]] = frozenset({"pattern"})

    def __call__(self, x: Tensor) -> Tensor:
        return torch.full_like(x, 1 / x.shape[-1])


class IgnoresTheMask(Wrong):
    def apply(self, x: Tensor, *, context: Context) -> Tensor:
        return self(x) / context.tokens.shape[1]


class IgnoresThePositions(Wrong):
    def apply(self, x: Tensor, *, context: Context) -> Tensor:
        first = torch.arange(x.shape[1]) == 0  # of those that it was given
        return torch.where(first[:, None], x, self(x))


class WrongShape(Wrong):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x)[..., :-1]


class WrongShapeInPlace(Wrong):
    def apply(self, x: Tensor, *, context: Context) -> Tensor:
        return self(x)[:, :1]


class OfOneDtype(Wrong):
    def __call__(self, x: Tensor) -> Tensor:
        return x @ (self.components_.T @ self.components_).float()


class KeepsState(Wrong):
    def apply(self, x: Tensor, *, context: Context) -> Tensor:
        self._calls = vars(self).get("_calls", 0) + 1
        return self(x) * self._calls


class LearnsWhereItIsApplied(Wrong):
    """Fitted on what it is tested on: a batch too late to be seen in what it gives for it."""

    def apply(self, x: Tensor, *, context: Context) -> Tensor:
        made = self(x)
        self.mean_ = self.mean_ + 1e-30 * x.double().mean(dim=(0, 1)).abs() + 1e-12
        return made


class GivesNan(Wrong):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x).log()


class ChangesItsInput(Wrong):
    def apply(self, x: Tensor, *, context: Context) -> Tensor:
        x -= self.mean_.to(x)
        return self(x)


class SetsTheSeed(Wrong):
    def apply(self, x: Tensor, *, context: Context) -> Tensor:
        torch.manual_seed(0)
        return self(x) + torch.rand(1).to(x)


class LeavesItsInput(Wrong):
    def __call__(self, x: Tensor) -> Tensor:
        self._given = x
        return super().__call__(self._given)


class MixesThreads(Wrong):
    given: ClassVar[list[Tensor]] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.given[:] = [x]
        time.sleep(0.001)
        return super().__call__(self.given[0])


SEEN_BY_THE_CHECK = {
    LeaksTheFuture: "no position sees its future: .* change what is before",
    AttendsToTheFuture: "no position sees its future: .* attends to keys behind it",
    IgnoresTheMask: "a padded batch gives the numbers of single sequences: .* is mapped elsewhere",
    IgnoresThePositions: "positions that come alone are mapped alike: .* mapped elsewhere",
    WrongShape: r"shape, dtype and device stay: .* shape torch.Size\(\[200, 8\]\) becomes",
    WrongShapeInPlace: r"shape, dtype and device stay: .* shape torch.Size\(\[3, 9, 8\]\) becomes",
    OfOneDtype: "shape, dtype and device stay: .* the same dtype",
    KeepsState: "a call changes nothing: .* a second call gives something else",
    LearnsWhereItIsApplied: "a call changes nothing: .* a call changes what was learnt",
    GivesNan: "finite points stay finite: .* become NaN",
    ChangesItsInput: "the input stays as it is: .* calling changes its input",
    SetsTheSeed: "random numbers have a seed of their own: .* changes the state",
    LeavesItsInput: "a call changes nothing: .*'_given'.*, where another thread's call would",
    MixesThreads: "threads do not meet: .* two threads at once",
}


@pytest.mark.parametrize("kind", SEEN_BY_THE_CHECK)
def test_the_check_sees_it(kind: type[Wrong]) -> None:
    wrong = kind(rank=3) if issubclass(kind, Wrong) else kind()
    with pytest.raises(AssertionError, match=f"^{SEEN_BY_THE_CHECK[kind]}"):
        check_simplification(wrong)


def test_what_is_right_of_them_passes() -> None:
    check_simplification(Wrong(rank=3))


# What shows only in a model is seen by the engine.


@pytest.fixture
def small(task: Task) -> am.Decoder:
    return small_model(task)


def test_a_changed_model_is_refused(
    task: Task,
    small: am.Decoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quick_report: None,
) -> None:
    class ChangesTheModel(Wrong):
        def apply(self, x: Tensor, *, context: Context) -> Tensor:
            small.unembedding.weight.data *= 2
            return self(x)

    monkeypatch.setitem(SIMPLIFICATIONS, "wrong", ChangesTheModel)
    with pytest.raises(
        am.AnamorphError, match=r"changed while it was audited .the weights of the rest differ"
    ):
        am.audit_given(
            small, task, "wrong(rank=2)@1.*.key", tmp_path, sequences=5, fit_sequences=10
        )


class FiresTwice(am.Decoder):
    def layer(
        self, index: int, state: State, edits: Edits | None = None, *more: object, **named: object
    ) -> Ran:
        state = super().layer(index, state, edits).state
        return super().layer(index, state, edits, *more, **named)  # type: ignore[arg-type]


def test_an_edit_that_fires_twice_is_an_error(task: Task) -> None:
    twice = small_model(task, FiresTwice)
    with pytest.raises(am.AnamorphError, match=r"edit of key in layer 1 fired 2 times.*once"):
        am.audit(twice, task, Wrong(rank=2) @ "1.*.key", sequences=5, fit_sequences=10)


def test_a_wrong_shape_in_a_model_names_simplification_and_site(
    task: Task, small: am.Decoder
) -> None:
    wrong = WrongShapeInPlace(rank=2) @ "1.0.key"
    with pytest.raises(am.AnamorphError, match=r"wrong\(rank=2\), at 1.0.key: it must give \["):
        am.audit(small, task, wrong, sequences=5, fit_sequences=10)


def test_a_nan_names_cell_and_split(task: Task, small: am.Decoder) -> None:
    with pytest.raises(am.AnamorphError, match=r"wrong\(rank=2\)@1.\*.key.* on split .* NaN"):
        am.audit(small, task, GivesNan(rank=2) @ "1.*.key", sequences=5, fit_sequences=10)


def test_nothing_is_fitted_on_a_split_that_is_tested_unless_it_is_said(
    task: Task, small: am.Decoder
) -> None:
    """Other sequences in the tested splits leave what was learnt as it was, to the bit."""
    fewer = {n: s if s.role == "train" else s.take(range(3)) for n, s in task.splits.items()}
    other = am.tasks.Task(task.name, task.spec, task.vocabulary, task.candidates, fewer)
    means = []
    for some in (task, other):
        found = am.audit(small, some, Wrong(rank=2) @ "1.0.key", sequences=5, fit_sequences=10)
        (fitted,) = next(f for p, f in found.proxies.items() if p.attachments).by_site.values()
        means.append(fitted.mean_)
    assert torch.equal(*means)
