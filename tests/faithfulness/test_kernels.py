"""The kernels against float64 SciPy; on a GPU if there is one, or else in Triton's interpreter."""

import math
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, rel_entr
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import anamorph.faithfulness.metrics as registry
from anamorph.faithfulness.comparison import position_metrics
from anamorph.faithfulness.divergences import Candidates
from anamorph.faithfulness.formulas import PlainOutput
from anamorph.faithfulness.metric import Metric
from anamorph.faithfulness.metrics import all_metrics, metric_names
from anamorph.faithfulness.model_output import ModelOutput

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter is NumPy

INF = math.inf
KERNELS = "anamorph.faithfulness.kernels"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALVES = torch.float32, torch.bfloat16, torch.float16
SAME, RIGHT, JSD, KL, BITS = range(5)


@pytest.fixture(scope="module")
def kernels() -> Any:
    return import_module(KERNELS)


@pytest.fixture
def blocks(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The kernels in blocks of 8, so that short rows take several."""
    monkeypatch.setattr(kernels, "BLOCK", 8)
    return kernels


def padded(values: NDArray[Any], dtype: torch.dtype, more: int) -> Tensor:
    """A slice of rows that are longer by some large numbers, which must not be read."""
    wider = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, more)], constant_values=9e3)
    return torch.tensor(wider).to(DEVICE, dtype)[..., : values.shape[-1]]


def on_device(tokens: NDArray[Any]) -> Tensor:
    return torch.tensor(tokens).to(DEVICE)


def numbers(values: Tensor) -> NDArray[np.float64]:
    return values.double().cpu().numpy()


def close(found: NDArray[Any], right: NDArray[Any], what: object = "") -> None:
    np.testing.assert_allclose(found, right, atol=1e-6, rtol=1e-6, err_msg=str(what))


def divergences(p: NDArray[Any], q: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """JSD and KL of probabilities, by SciPy."""
    p, q = np.broadcast_arrays(p, q)
    middle = (p + q) / 2
    jsd = (rel_entr(p, middle) + rel_entr(q, middle)).sum(-1) / 2
    return jsd / math.log(2), rel_entr(p, q).sum(-1) / math.log(2)


def predictions(
    model: NDArray[Any], proxy: NDArray[Any], target: int, candidates: NDArray[Any]
) -> tuple[int, int]:
    """What the model says and the proxy says, in one row each."""
    ordered = sorted(candidates.tolist())
    said = max(ordered, key=lambda token: model[token])
    tied = [t for t in ordered if proxy[t] == max(proxy[ordered])]
    return said, next((t for t in (said, target) if t in tied), tied[0])


def expected(
    model: NDArray[Any], proxies: NDArray[Any], targets: NDArray[Any], candidates: NDArray[Any]
) -> NDArray[Any]:
    """[metric, copy, position]."""
    log_p, log_q = log_softmax(model, axis=-1), log_softmax(proxies, axis=-1)
    found = np.empty((5, *proxies.shape[:2]))
    found[JSD], found[KL] = divergences(np.exp(log_p), np.exp(log_q))
    for copy, row in np.ndindex(*proxies.shape[:2]):
        said, says = predictions(model[row], proxies[copy, row], targets[row], candidates)
        found[SAME, copy, row], found[RIGHT, copy, row] = said == says, says == targets[row]
        found[BITS, copy, row] = -log_q[copy, row, targets[row]] / math.log(2)
    return found


def random_candidates(rng: np.random.Generator, vocabulary: int) -> NDArray[np.int64]:
    """All, one, a run, or some, in any order."""
    size = int(rng.integers(1, vocabulary + 1))
    start = int(rng.integers(vocabulary - size + 1))
    some = rng.permutation(vocabulary)[:size]
    kinds = np.arange(vocabulary), some[:1], np.arange(start, start + size), some
    return kinds[rng.integers(4)]


def random_rows(rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    """Logits of model and proxies: at any scale, often tied, equal in part, some -inf."""
    copies, positions, vocabulary = (int(rng.integers(1, most)) for most in (4, 4, 70))
    scale, offset = rng.choice([1e-2, 1, 8]), rng.choice([0, -40, 300])
    model = rng.normal(size=(positions, vocabulary)) * scale + offset
    proxies = model + rng.normal(size=(copies, positions, vocabulary)) * scale
    if rng.random() < 0.3:
        model, proxies = model.round(), proxies.round()
    for rows in (model, proxies):
        impossible = rng.random(rows.shape) < rng.choice([0, 0, 0.2])
        impossible[..., rng.integers(vocabulary)] = False
        rows[impossible] = -INF
    proxies[0, 0] = model[0]
    return model, proxies


@pytest.mark.parametrize("part", range(10))
def test_random_rows_are_scipys(blocks: Any, part: int) -> None:
    for seed in range(20 * part, 20 * part + 20):
        rng = np.random.default_rng(seed)
        dtype, more = HALVES[rng.integers(3)], int(rng.integers(5))
        model, proxies = (padded(x, dtype, more) for x in random_rows(rng))
        vocabulary = model.shape[-1]
        targets = rng.integers(vocabulary, size=len(model))
        candidates = random_candidates(rng, vocabulary)
        choice = Candidates.of(candidates, vocabulary, DEVICE)
        output = blocks.KernelOutput.of(model, on_device(targets), choice)
        assert output.logits.data_ptr() == model.data_ptr()  # no copy
        found = numbers(output.compare(proxies))
        right = expected(numbers(model), numbers(proxies), targets, candidates)
        close(found, right, seed)
        assert found[JSD, 0, 0] == found[KL, 0, 0] == 0
        said = [predictions(x, x, 0, candidates)[0] for x in numbers(model)]
        assert output.said.tolist() == said
        log_p = log_softmax(numbers(model), axis=-1)
        close(numbers(output.cross_entropy), -log_p[np.arange(len(targets)), targets] / math.log(2))


def test_equal_rows_give_exactly_nothing_whatever_their_strides(kernels: Any) -> None:
    rows = np.random.default_rng(0).normal(size=(4, 3001)) * 3
    targets = on_device(np.arange(4))
    for dtype in HALVES:
        model = padded(rows, dtype, 0)
        choice = Candidates.of(np.arange(3001), 3001, DEVICE)
        output = kernels.KernelOutput.of(model, targets, choice)
        turned = model.T.contiguous().T[None]
        for proxies in (model.expand(2, -1, -1), padded(rows[None], dtype, 7), turned):
            found = output.compare(proxies)
            assert (found[[JSD, KL]] == 0).all() and (found[SAME] == 1).all()
            assert torch.equal(found[BITS], output.cross_entropy.expand_as(found[BITS]))


def test_rows_of_a_part_of_the_positions_are_those_of_the_whole(blocks: Any) -> None:
    rng = np.random.default_rng(3)
    model, proxies = padded(rng.normal(size=(6, 21)), HALVES[0], 2), rng.normal(size=(2, 6, 21))
    choice = Candidates.of(np.array([3, 9, 20]), 21, DEVICE)
    output = blocks.KernelOutput.of(model, on_device(rng.integers(21, size=6)), choice)
    whole = output.compare(on_device(proxies))
    assert torch.equal(output[2:5].compare(on_device(proxies)[:, 2:5]), whole[:, :, 2:5])


def compared(
    module: Any, model: list[float], proxy: list[float], target: int = 0
) -> NDArray[np.float64]:
    """The numbers of one row."""
    choice = Candidates.of(np.arange(len(model)), len(model), DEVICE)
    rows = on_device(np.array([model, proxy], np.float32))
    output = module.KernelOutput.of(rows[:1], on_device(np.array([target])), choice)
    return numbers(output.compare(rows[None, 1:]))[:, 0, 0]


def test_what_is_impossible_is_counted_as_the_formulas_say(blocks: Any) -> None:
    log2, log3 = math.log(2), math.log(3)
    _, _, jsd, kl, bits = compared(blocks, [0, 0, -INF], [0, -INF, -INF], target=1)
    assert jsd == pytest.approx(0.75 * math.log2(4 / 3), abs=1e-6)
    assert kl == INF and bits == INF
    _, _, jsd, kl, bits = compared(blocks, [0, -INF], [0, log3], target=0)
    by_hand = 0.5 * math.log2(1.6) + 0.125 * math.log2(0.4) + 0.375
    assert (jsd, kl, bits) == pytest.approx((by_hand, 2, 2), abs=1e-6)
    assert compared(blocks, [-INF, log2], [log2, -INF])[JSD] == 1
    assert compared(blocks, [0, -120], [0, -INF])[KL] == 0  # underflows


def test_huge_logits_do_not_overflow(blocks: Any) -> None:
    same, _, jsd, kl, bits = compared(blocks, [3e38, 1, -3e38], [3e38, 2, -3e38])
    assert (same, jsd, kl, bits) == (1, 0, 0, 0)
    *_, jsd, kl, bits = compared(blocks, [1e30, 0], [0, 1e30])
    assert jsd == 1 and kl == pytest.approx(1e30 / math.log(2), rel=1e-6) and bits == kl


def test_nan_and_infinity_stay_nan_and_harm_no_other_row(blocks: Any) -> None:
    rng = np.random.default_rng(1)
    good = rng.normal(size=(3, 20)).astype(np.float32)
    for bad in (math.nan, INF):
        for where in (slice(5, 6), slice(None)):
            model, proxies = good.copy(), np.stack([good, good + 1])
            model[0, where] = proxies[1, 2, where] = bad
            choice = Candidates.of(np.arange(20), 20, DEVICE)
            output = blocks.KernelOutput.of(on_device(model), on_device(np.arange(3)), choice)
            assert 0 <= int(output.said[0]) < 20
            found = numbers(output.compare(on_device(proxies)))
            expected_nan = [[True, False, False], [True, False, True]]
            assert np.isnan(found[JSD]).tolist() == np.isnan(found[KL]).tolist() == expected_nan


def test_a_tie_goes_to_the_models_prediction_then_to_the_target(blocks: Any) -> None:
    model, tied, other = [0.0, 1.0, 0.0, 1.0], [2.0, 2.0, 0.0, 0.0], [2.0, 0.0, 2.0, 0.0]
    for proxy, right in ((tied, [0, 1, 0, 0]), (other, [1, 0, 1, 0]), (model, [0, 1, 0, 0])):
        found = [compared(blocks, model, proxy, target) for target in range(4)]
        assert [x[SAME] for x in found] == [proxy is not other] * 4
        assert [x[RIGHT] for x in found] == right


def overlap(p: NDArray[Any], q: NDArray[Any]) -> float:
    most = [set(np.flatnonzero(x >= x.max() * (1 - 1e-4))) for x in (p, q)]
    return len(most[0] & most[1]) / len(most[0] | most[1])


@pytest.mark.parametrize("part", range(5))
def test_random_attention_is_scipys(blocks: Any, part: int) -> None:
    for seed in range(10 * part, 10 * part + 10):
        rng = np.random.default_rng(seed)
        copies, heads, positions, keys = (int(rng.integers(1, most)) for most in (4, 4, 4, 30))
        weights = rng.random((1 + copies, heads, positions, keys))
        masked = rng.random(weights.shape) < rng.choice([0, 0.4])
        masked[..., rng.integers(keys)] = False
        weights[masked] = 0
        tied = rng.random(masked.shape[:-1]) < 0.5  # two keys, within rounding or hardly apart
        weights[tied, rng.integers(keys)] = weights.max(-1)[tied] * (1 - rng.choice([5e-5, 3e-4]))
        weights[1, 0] = weights[0, 0]
        p = weights / weights.sum(-1, keepdims=True)
        turned = torch.tensor(p).transpose(1, 2).contiguous().transpose(1, 2)
        patterns = turned.to(DEVICE, HALVES[rng.integers(3)])
        found = numbers(blocks.KernelOutput.compare_attention(patterns[0], patterns[1:]))
        exact = numbers(patterns)
        jsd = divergences(exact[0], exact[1:])[0].mean(1)
        same = np.array(
            [
                [
                    np.mean([overlap(a, b) for a, b in zip(exact[0, :, i], x[:, i], strict=True)])
                    for i in range(positions)
                ]
                for x in exact[1:]
            ]
        )
        close(found, np.stack([jsd, same]), seed)
        if heads == 1:
            assert (found[0, 0] == 0).all() and (found[1, 0] == 1).all()


def test_attention_that_underflows_counts_as_none_and_nan_stays(blocks: Any) -> None:
    p = torch.tensor([[0.5, 0.5, 1e-40, 0], [0.5, 0.5, 1e-40, 0], [1, 0, 0, 0]]).float()
    q = torch.tensor([[0.5, 0.5, 1e-40, 0], [0.5, 0.5, 0, 1e-40], [1, 0, 0, math.nan]]).float()
    found = numbers(
        blocks.KernelOutput.compare_attention(p[None].to(DEVICE), q[None, None].to(DEVICE))
    )
    assert found[0, 0, :2].tolist() == [0, 0] and np.isnan(found[0, 0, 2])


def in_top_2(model: Any, logits: Tensor) -> Tensor:
    right: Tensor = (logits.topk(2).indices == model.targets[:, None]).any(-1)
    assert model.logits.dtype == logits.dtype == torch.float32
    assert torch.allclose(model.p, model.logits.softmax(-1))
    return right.float()


def distance(model: Tensor, proxy: Tensor) -> Tensor:
    return (model - proxy).abs().amax((0, 2))


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    shown = "share", "higher", "1 = always", "…"
    ours = Metric("in_top_2", "in the top two", *shown, in_top_2)
    theirs = Metric("distance", "largest distance", *shown, distance, "attention")
    monkeypatch.setattr(registry, "BUILT_IN", (*registry.BUILT_IN, ours, theirs))
    all_metrics.cache_clear()
    yield
    monkeypatch.undo()
    all_metrics.cache_clear()


def whole_case(dtype: torch.dtype) -> tuple[Any, ...]:
    """Logits, targets, candidates and attention of a model and three proxies."""
    rng = np.random.default_rng(5)
    model = rng.normal(size=(6, 23)) * 2
    logits = padded(model + rng.normal(size=(3, 6, 23)), dtype, 4)
    attention = [rng.dirichlet(np.ones(9), size=shape) for shape in ((2, 6), (3, 2, 6))]
    patterns = [torch.tensor(x).to(DEVICE, dtype) for x in attention]
    choice = Candidates.of(np.array([1, 5, 6, 20]), 23, DEVICE)
    return padded(model, dtype, 4), on_device(rng.integers(23, size=6)), choice, logits, *patterns


@pytest.mark.usefixtures("added")
@pytest.mark.parametrize("dtype", HALVES)
def test_all_metrics_are_those_of_the_plain_formulas(kernels: Any, dtype: torch.dtype) -> None:
    model, targets, candidates, logits, p, q = whole_case(dtype)
    ways: tuple[type[ModelOutput], ...] = (PlainOutput, kernels.KernelOutput)
    outputs = [way.of(model, targets, candidates) for way in ways]
    for attention in ((p, q), (p, q[:1]), ()):
        plain, ours = (numbers(position_metrics(x, logits, *attention)) for x in outputs)
        assert ours.shape == (3, len(metric_names(bool(attention))), 6)
        for name, right, found in zip(
            metric_names(bool(attention)), plain.swapaxes(0, 1), ours.swapaxes(0, 1), strict=True
        ):
            np.testing.assert_allclose(found, right, atol=2e-6, err_msg=name)


class Hurried(TorchDispatchMode):
    """Refuses what would make the host wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = "_local_scalar_dense", "is_nonzero", "nonzero", "equal", "_unique2", "masked_select"
        assert func.overloadpacket.__name__ not in waits, func
        return func(*args, **kwargs or {})


def test_nothing_waits_for_the_device(kernels: Any) -> None:
    model, targets, candidates, logits, p, q = whole_case(torch.float32)
    with Hurried():
        output = kernels.KernelOutput.of(model, targets, candidates)
        position_metrics(output[1:5], logits[:, 1:5], p[:, 1:5], q[:, :, 1:5])
    with Hurried(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        PlainOutput.of(model, targets, candidates)


def test_triton_is_not_imported_before_it_is_of_use() -> None:
    code = (
        "import sys; import anamorph.auditing.engine; "
        f"assert {KERNELS!r} not in sys.modules and 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
