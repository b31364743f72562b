"""Metrics against SciPy, a plain loop in float64, and numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from anamorph.errors import AnamorphError
from anamorph.faithfulness import comparison, divergences, formulas
from anamorph.faithfulness.metrics import metric_names

METRICS = metric_names()
INF = math.inf
weights = arrays(
    np.float32, (2, 7), elements=st.one_of(st.just(0.0), st.floats(2**-20, 1, width=32))
).filter(lambda w: (w.sum(axis=1) > 0).all())


@given(weights)
def test_jensen_shannon_is_scipys(raw):
    p, q = raw / raw.sum(axis=1, keepdims=True)
    ours = divergences.jensen_shannon(torch.tensor(p), torch.tensor(q)).item()
    assert ours == pytest.approx(jensenshannon(p, q, base=2) ** 2, abs=1e-6)
    assert 0 <= ours <= 1
    assert divergences.jensen_shannon(torch.tensor(p), torch.tensor(p)).item() == 0


@given(weights)
def test_kl_is_scipys(raw):
    p, q = torch.tensor(raw / raw.sum(axis=1, keepdims=True))
    ours = divergences.kl(p.log(), q.log()).item()
    assert ours == pytest.approx(entropy(p.double(), q.double(), base=2), abs=2e-6, rel=1e-6)
    assert divergences.kl(p.log(), p.log()).item() == 0


@pytest.mark.parametrize(
    ("p", "q", "bits"),
    [
        ([1.0, 0.0], [0.0, 1.0], 1.0),  # nothing in common
        ([1.0, 0.0], [1.0, 0.0], 0.0),
        ([1.0, 0.0], [0.5, 0.5], 1.5 - 0.75 * math.log2(3)),
        ([1e-40, 1.0, 0.0], [1e-40, 1.0, 0.0], 0.0),  # subnormal, and nothing on the last
        ([1.0, 1e-12], [1.0, 0.0], 0.5e-12),
    ],
)
def test_jensen_shannon_by_hand(p, q, bits):
    for first, second in ((p, q), (q, p)):
        ours = divergences.jensen_shannon(torch.tensor(first), torch.tensor(second)).item()
        assert ours == pytest.approx(bits, abs=1e-7)
        assert bits != 0 or ours == 0


def test_small_divergences_are_not_lost_in_rounding():
    p = np.full(50, 0.02)
    q = p * (1 + 1e-3 * np.sign(np.arange(50) - 24.5))
    ours = divergences.jensen_shannon(torch.tensor(p), torch.tensor(q)).item()
    assert ours == pytest.approx(jensenshannon(p, q, base=2) ** 2, abs=3e-8)


@pytest.mark.parametrize(
    ("log_p", "log_q", "bits"),
    [
        ([0.0, -INF], [0.0, -INF], 0.0),
        ([0.0, -INF], [math.log(0.25), math.log(0.75)], 2.0),
        ([math.log(0.5)] * 2, [0.0, -INF], INF),
        ([0.0, -120.0], [0.0, -INF], 0.0),  # underflows: the model puts ~0 there as well
    ],
)
def test_kl_where_something_is_impossible(log_p, log_q, bits):
    assert divergences.kl(torch.tensor(log_p), torch.tensor(log_q)).item() == pytest.approx(bits)


def test_nan_is_never_hidden():
    bad, good = torch.tensor([math.nan, 0.5]), torch.tensor([0.5, 0.5])
    for p, q in ((bad, good), (good, bad)):
        assert divergences.jensen_shannon(p, q).isnan()
        assert divergences.kl(p.log(), q.log()).isnan()


def test_cross_entropy_in_bits():
    log_p = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.875, 0.0]]).log()
    assert divergences.cross_entropy(log_p, torch.tensor([1, 0])).tolist() == pytest.approx([2, 3])


def test_a_prediction_is_among_the_candidates_and_the_lowest_of_ties():
    logits = torch.tensor([9.0, 1.0, 3.0, 2.0, 3.0])
    for tokens, best in (([1, 2, 3, 4], 2), ([4, 3, 1], 4), ([4, 2], 2), (range(5), 0)):
        candidates = divergences.Candidates.of(np.array(list(tokens)), 5)
        assert candidates.best(logits) == best
        assert candidates.highest(logits) == logits[best]
        assert candidates.hold(torch.arange(5)).nonzero().flatten().tolist() == sorted(tokens)


@pytest.mark.parametrize("candidates", [[], [3, 5], [-1, 0]])
def test_candidates_that_do_not_fit_are_refused(candidates):
    with pytest.raises(AnamorphError, match="vocabulary of 5"):
        divergences.Candidates.of(np.array(candidates, np.int64), 5)


def same_attention(model, proxy):
    return divergences.overlap(*map(divergences.most_attended, (model, proxy)))


def test_attention_is_averaged_over_heads():
    model = torch.tensor([[[1.0, 0, 0]], [[0.5, 0.25, 0.25]]])  # [head, query, key]
    proxy = torch.tensor([[[0, 1.0, 0]], [[0.5, 0.25, 0.25]]])
    assert divergences.attention_jsd(model, proxy).tolist() == [0.5]
    assert same_attention(model, proxy).tolist() == [0.5]


def test_tied_keys_share_the_agreement():
    model = torch.tensor([0.6, 0.3, 0.1]).view(1, 1, 3)
    uniform = torch.full((1, 1, 3), 1 / 3)
    assert same_attention(model, uniform).item() == pytest.approx(1 / 3)
    assert same_attention(uniform, uniform).item() == 1
    two = torch.tensor([0.1, 0.45, 0.45]).view(1, 1, 3)
    assert same_attention(model, two).item() == 0
    assert same_attention(uniform, two).item() == pytest.approx(2 / 3)


def test_rounding_does_not_decide_a_tie():
    model = torch.tensor([0.1, 0.6, 0.3]).view(1, 1, 3)
    for sign in (-1, 1):
        proxy = torch.tensor([0.45 + sign * 1e-6, 0.45 - sign * 1e-6, 0.1]).view(1, 1, 3)
        assert same_attention(model, proxy).item() == 0.5
    apart = torch.tensor([0.45, 0.4499, 0.1001]).view(1, 1, 3)  # 2e-4: a difference, no tie
    assert same_attention(model, apart).item() == 0


def position_metrics(model, proxy, targets, candidates, *attention):
    """[copy, metric, batch, query] from [1 or copy, batch, (head,) query, ...]."""
    output = comparison.model_output(
        model[0].flatten(0, 1),
        targets.flatten(),
        divergences.Candidates.of(candidates.numpy(), model.shape[-1]),
    )
    flat = [None if a is None else a.transpose(1, 2).flatten(2, 3) for a in attention]
    if attention:
        flat[0] = flat[0][0]
    values = comparison.position_metrics(output, proxy.flatten(1, 2), *flat)
    return values.unflatten(-1, targets.shape)


def test_all_metrics_by_hand():
    model = torch.tensor([0.5, 0.25, 0.25]).log().view(1, 1, 1, 3)
    proxy = torch.tensor([0.25, 0.5, 0.25]).log().view(1, 1, 1, 3)

    def measure(target):
        values = position_metrics(model, proxy, torch.tensor([[target]]), torch.arange(3))
        return dict(zip(metric_names(attention=False), values.flatten().tolist(), strict=True))

    first = measure(0)
    assert first["same_prediction"] == 0
    assert first["output_kl"] == pytest.approx(0.25)
    assert first["output_jsd"] == pytest.approx(0.75 * math.log2(8 / 3) - 1, abs=1e-6)
    assert first["model_cross_entropy"] == pytest.approx(1)
    assert first["proxy_cross_entropy"] == pytest.approx(2)
    right = ["model_accuracy", "proxy_accuracy", "model_only_right", "proxy_only_right"]
    assert [first[name] for name in right] == [1, 0, 1, 0]
    assert [measure(1)[name] for name in right] == [0, 1, 0, 1]
    assert [measure(2)[name] for name in right] == [0, 0, 0, 0]
    assert [measure(target)["different_errors"] for target in range(3)] == [0, 0, 1]


def random_case(seed, copies=3, batch=4, query=5, vocabulary=9, heads=2, keys=6):
    rng = np.random.default_rng(seed)
    model = rng.normal(size=(1, batch, query, vocabulary)) * 3
    proxy = model + rng.normal(size=(copies, batch, query, vocabulary)) * 2
    seen = rng.random((1, batch, 1, query, keys)) < 0.7
    seen[..., 0] = True
    attention = [
        softmax(np.where(seen, rng.normal(size=(n, batch, heads, query, keys)), -INF), axis=-1)
        for n in (1, copies)
    ]
    targets = rng.integers(vocabulary, size=(batch, query))
    return model, proxy, targets, *attention


def overlap(p, q):
    most = [set(np.flatnonzero(x >= x.max() * (1 - 1e-4))) for x in (p, q)]
    return len(most[0] & most[1]) / len(most[0] | most[1])


def plain_loop(model, proxy, targets, model_attention, proxy_attention, candidates):
    out = np.empty((len(proxy), 13, *targets.shape))
    for copy, row, column in np.ndindex(len(proxy), *targets.shape):
        a, b = log_softmax(model[0, row, column]), log_softmax(proxy[copy, row, column])
        target = targets[row, column]
        said = [max(candidates, key=lambda token: x[token]) for x in (a, b)]
        p, q = model_attention[0, row, :, column], proxy_attention[copy, row, :, column]
        out[copy, :, row, column] = [
            said[0] == said[1],
            np.mean([jensenshannon(x, y, base=2) ** 2 for x, y in zip(p, q, strict=True)]),
            np.mean([overlap(x, y) for x, y in zip(p, q, strict=True)]),
            jensenshannon(np.exp(a), np.exp(b), base=2) ** 2,
            entropy(np.exp(a), np.exp(b), base=2),
            said[0] == target,
            said[1] == target,
            -a[target] / math.log(2),
            -b[target] / math.log(2),
            said[1] == target != said[0],
            said[0] == target != said[1],
            said[0] != target and said[1] != target and said[0] != said[1],
            (said[0] == target) != (said[1] == target),
        ]
    return out


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 20, 2**18]))
@pytest.mark.parametrize("candidates", [[2, 3, 4, 5], [8, 1, 4], list(range(9))])
def test_position_metrics_is_the_plain_loop_in_blocks_of_any_size(candidates, seed, block):
    model, proxy, targets, p, q = random_case(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formulas, "BLOCK", block)
        ours = position_metrics(
            *(torch.tensor(x, dtype=torch.float32) for x in (model, proxy)),
            torch.tensor(targets),
            torch.tensor(candidates),
            *(torch.tensor(x, dtype=torch.float32) for x in (p, q)),
        )
    expected = plain_loop(model, proxy, targets, p, q, candidates)
    np.testing.assert_allclose(ours[:, :13], expected, atol=2e-5)  # later ones have own tests


def test_attention_that_no_proxy_changes_has_one_copy():
    model, proxy, targets, p, _ = (torch.tensor(x) for x in random_case(0))
    values = position_metrics(model, proxy, targets, torch.arange(9), p, p)
    jsd, same = (values[:, METRICS.index(name)] for name in ("attention_jsd", "same_attention"))
    assert jsd.shape == (3, 4, 5)
    assert (jsd == 0).all() and (same == 1).all()


def test_the_identity_agrees_exactly():
    model, _, targets, p, _ = (torch.tensor(x).float() for x in random_case(1))
    values = position_metrics(model, model, targets.long(), torch.arange(2, 6), p, p)
    by_name = dict(zip(METRICS, values[0], strict=True))
    for name in ("attention_jsd", "output_jsd", "output_kl", "different_errors", "flips"):
        assert (by_name[name] == 0).all(), name
    assert (by_name["same_prediction"] == 1).all()
    assert torch.equal(by_name["model_cross_entropy"], by_name["proxy_cross_entropy"])


def test_half_precision_is_measured_in_float32():
    model, proxy, targets, p, q = (torch.tensor(x) for x in random_case(2))
    half = [x.to(torch.bfloat16) for x in (model, proxy, p, q)]
    whole = [x.float() for x in half]
    values = [
        position_metrics(x[0], x[1], targets, torch.arange(9), x[2], x[3]) for x in (half, whole)
    ]
    assert values[0].dtype == torch.float32
    assert torch.equal(*values)


def test_one_sided_attention_is_refused():
    model, proxy, targets, p, _ = (torch.tensor(x) for x in random_case(3))
    with pytest.raises(AnamorphError, match="give both or neither"):
        position_metrics(model, proxy, targets, torch.arange(9), p, None)


@pytest.mark.parametrize("spread", [1e-3, 1.0, 30.0, 200.0])
@pytest.mark.parametrize("offset", [0.0, -40.0, 300.0])
def test_divergences_at_any_scale_are_scipys(spread, offset):
    rng = np.random.default_rng(0)
    model = rng.normal(size=(1, 1, 4, 50)).astype(np.float32) * max(1, spread)
    proxy = (model + spread * rng.normal(size=(2, 1, 4, 50)) + offset).astype(np.float32)
    targets = torch.zeros(1, 4, dtype=torch.int64)
    values = position_metrics(*map(torch.tensor, (model, proxy)), targets, torch.arange(50))
    ours = dict(zip(metric_names(attention=False), values.unbind(1), strict=True))
    log_p, log_q = (log_softmax(x.astype(np.float64), axis=-1) for x in (model, proxy))
    p, q = np.exp(log_p), np.exp(log_q)
    expected = {
        "output_jsd": jensenshannon(np.broadcast_to(p, q.shape), q, base=2, axis=-1) ** 2,
        "output_kl": (p * (log_p - log_q)).sum(-1) / math.log(2),
        "proxy_cross_entropy": -log_q[..., 0] / math.log(2),
    }
    rounding = 2e-6 + 1e-6 * (abs(offset) + spread)  # of float32 logits of that size
    for name, right in expected.items():
        np.testing.assert_allclose(ours[name], right, atol=rounding, rtol=1e-5, err_msg=name)


def test_tokens_that_are_impossible_cost_nothing_and_nan_stays():
    model = torch.tensor([1.0, 2.0, -INF]).view(1, 1, 1, 3)
    proxy = torch.stack([model[0], model[0].nan_to_num(neginf=0.0), model[0] * math.nan])
    targets = torch.zeros(1, 1, dtype=torch.int64)
    values = position_metrics(model, proxy, targets, torch.arange(3)).flatten(1)
    ours = dict(zip(metric_names(attention=False), values.T, strict=True))
    assert ours["output_kl"][0] == ours["output_jsd"][0] == 0
    p, q = softmax([1.0, 2.0, -INF]), softmax([1.0, 2.0, 0.0])
    assert ours["output_kl"][1] == pytest.approx(entropy(p, q, base=2), abs=1e-6)
    assert ours["output_jsd"][1] == pytest.approx(jensenshannon(p, q, base=2) ** 2, abs=1e-6)
    assert ours["output_kl"][2].isnan() and ours["output_jsd"][2].isnan()


@pytest.mark.parametrize("masked", [1, 6, 18])
@pytest.mark.parametrize("value", [-INF, -1e9, -65504.0])
def test_a_vocabulary_that_is_padded_in_model_and_proxy_is_scipys(masked, value):
    rng = np.random.default_rng(0)
    model, proxy = rng.normal(size=(1, 1, 5, 20)), rng.normal(size=(3, 1, 5, 20))
    model[..., 20 - masked :] = proxy[..., 20 - masked :] = value
    targets = torch.zeros(1, 5, dtype=torch.int64)
    values = position_metrics(*map(torch.tensor, (model, proxy)), targets, torch.arange(20))
    ours = dict(zip(metric_names(attention=False), values.unbind(1), strict=True))
    p, q = softmax(np.broadcast_to(model, proxy.shape), axis=-1), softmax(proxy, axis=-1)
    jsd = jensenshannon(p, q, base=2, axis=-1) ** 2
    np.testing.assert_allclose(ours["output_jsd"], jsd, atol=2e-6)
    np.testing.assert_allclose(ours["output_kl"], entropy(p, q, base=2, axis=-1), atol=5e-6)
    np.testing.assert_allclose(ours["proxy_cross_entropy"], -np.log2(q[..., 0]), atol=2e-6)


def test_a_proxy_that_rules_out_a_token_costs_infinitely_much_and_no_other_does():
    rng = np.random.default_rng(0)
    model, proxy = rng.normal(size=(1, 1, 5, 20)), rng.normal(size=(3, 1, 5, 20))
    proxy[1, 0, 2, 4:8] = -INF
    targets = torch.full((1, 5), 4)
    values = position_metrics(*map(torch.tensor, (model, proxy)), targets, torch.arange(20))
    ours = dict(zip(metric_names(attention=False), values.unbind(1), strict=True))
    p, q = softmax(np.broadcast_to(model, proxy.shape), axis=-1), softmax(proxy, axis=-1)
    jsd = jensenshannon(p, q, base=2, axis=-1) ** 2
    np.testing.assert_allclose(ours["output_jsd"], jsd, atol=2e-6)
    np.testing.assert_allclose(ours["output_kl"], entropy(p, q, base=2, axis=-1), atol=5e-6)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(ours["proxy_cross_entropy"], -np.log2(q[..., 4]), atol=2e-6)
    for name in ("output_kl", "proxy_cross_entropy"):
        assert ours[name].isinf().nonzero().tolist() == [[1, 0, 2]]


def test_a_tie_goes_to_the_models_prediction_then_to_the_target():
    model = torch.tensor([0.0, 1.0, 0.0, 1.0]).view(1, 1, 1, 4)  # says 1
    proxy = torch.tensor([[2.0, 2.0, 0.0, 0.0], [2.0, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, 1.0]])

    def measure(target):
        found = position_metrics(
            model, proxy.view(3, 1, 1, 4), torch.tensor([[target]]), torch.arange(4)
        )
        by_name = dict(zip(metric_names(attention=False), found.unbind(1), strict=True))
        return [by_name[n].flatten().tolist() for n in ("same_prediction", "proxy_accuracy")]

    assert measure(0) == [[1, 0, 1], [0, 1, 0]]
    assert measure(1) == [[1, 0, 1], [1, 0, 1]]
    assert measure(2) == [[1, 0, 1], [0, 1, 0]]
    assert measure(3) == [[1, 0, 1], [0, 0, 0]]  # as the model: tied, and does not say it
