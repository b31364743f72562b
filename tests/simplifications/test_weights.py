"""Rounded, pruned and low-rank matrices against brute force."""

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.models.sites import Site
from anamorph.simplifications import LowRank, Prune, Quantize, WeightChange, parse
from anamorph.simplifications.methods.quantize import making_up, output_errors, to_nearest
from anamorph.simplifications.weight_change import Seen

MLP, PATTERN = Site(0, None, "mlp"), Site(0, 0, "pattern")


def normal(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def correlated(seed: int, points: int, dim: int) -> Tensor:
    return normal(seed, points, dim) @ normal(seed + 1, dim, dim) + normal(seed + 2, dim)


def fitted(
    change: WeightChange, matrices: list[Tensor], x: Tensor, site: Site = MLP
) -> list[Tensor]:
    """What a change makes of matrices that are all given `x` [points, in]."""
    named = {str(number): matrix for number, matrix in enumerate(matrices)}
    inputs = {name: change.statistic(x.shape[1]) for name in named}
    for statistic in inputs.values():
        if statistic is not None:
            statistic.update(x)
    seen = None if inputs["0"] is None else Seen(site, named, inputs)
    changed = change.clone().learn(seen).change(site, named)
    return [changed.get(name, matrix) for name, matrix in named.items()]


def output_error(w: Tensor, new: Tensor, x: Tensor) -> float:
    return float(((x @ w.T - x @ new.T) ** 2).sum())


# Low rank


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.integers(1, 30), st.integers(0, 999)
)
def test_whitened_is_never_worse_than_plain(
    out: int, width: int, rank: int, points: int, seed: int
) -> None:
    w, x = normal(seed, out, width), correlated(seed, points, width)
    (plain,) = fitted(LowRank(rank=rank), [w], x)
    (whitened,) = fitted(LowRank(rank=rank, whitened=True), [w], x)
    scale = float(((x @ w.T) ** 2).sum())
    assert output_error(w, whitened, x) <= output_error(w, plain, x) + 1e-8 * scale
    for new in (plain, whitened):
        assert np.linalg.matrix_rank(new.numpy(), tol=1e-9) <= max(rank, 0) or rank >= min(w.shape)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7)])
def test_plain_is_the_truncated_svd(shape: tuple[int, int]) -> None:
    w = normal(0, *shape)
    u, s, vt = np.linalg.svd(w.numpy(), full_matrices=False)
    (new,) = fitted(LowRank(rank=2), [w], normal(1, 3, shape[1]))
    np.testing.assert_allclose(new, (u[:, :2] * s[:2]) @ vt[:2], atol=1e-10)


@pytest.mark.parametrize("shape", [(7, 5), (4, 6)])
def test_whitened_is_the_optimum_of_outputs(shape: tuple[int, int]) -> None:
    w, x = normal(0, *shape), correlated(3, 50, shape[1])
    (new,) = fitted(LowRank(rank=2, whitened=True), [w], x)
    # In closed form another way: the truncated SVD of W L, by the Cholesky factor L of the moments.
    factor = scipy.linalg.cholesky((x.T @ x).numpy(), lower=True)
    u, s, vt = np.linalg.svd(w.numpy() @ factor, full_matrices=False)
    best = scipy.linalg.solve((factor.T), ((u[:, :2] * s[:2]) @ vt[:2]).T).T
    np.testing.assert_allclose(new, best, atol=1e-7)
    # By brute force: nothing of rank 2 that SciPy finds from many starts is better.
    out, width = shape

    def loss(flat: np.ndarray) -> float:
        a, b = flat[: out * 2].reshape(out, 2), flat[out * 2 :].reshape(2, width)
        return float(((x.numpy() @ (w.numpy() - a @ b).T) ** 2).sum())

    starts = (normal(seed, 2 * (out + width)).numpy() for seed in range(4))
    found = min(scipy.optimize.minimize(loss, start).fun for start in starts)
    assert output_error(w, new, x) == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize("rank", [1, 2])
def test_scores_are_best(whitened: bool, rank: int) -> None:
    dim, width, points = 3, 6, 40
    w_q, w_k, x = normal(0, dim, width), normal(1, dim, width), correlated(2, points, width)
    new_q, new_k = fitted(LowRank(rank=rank, whitened=whitened), [w_q, w_k], x, PATTERN)
    assert torch.equal(new_k, w_k)  # so that other heads may read the keys
    assert np.linalg.matrix_rank(new_q.numpy(), tol=1e-9) == rank
    seen = x.numpy() if whitened else np.eye(width)
    own, product = (w_q.T @ w_k).numpy(), (new_q.T @ new_k).numpy()

    def error(matrix: np.ndarray) -> float:
        """Over all pairs of a token that looks and one that is looked at."""
        return float(((seen @ (own - matrix) @ seen.T) ** 2).sum())

    root = scipy.linalg.sqrtm(seen.T @ seen).real
    u, s, vt = np.linalg.svd(root @ own @ root)
    back = np.linalg.inv(root)
    best = back @ ((u[:, :rank] * s[:rank]) @ vt[:rank]) @ back
    np.testing.assert_allclose(product, best, atol=1e-6)

    def loss(flat: np.ndarray) -> float:
        a, b = flat.reshape(2, width, rank)
        return error(a @ b.T)

    starts = (normal(seed, 2 * width * rank).numpy() for seed in range(4))
    found = min(scipy.optimize.minimize(loss, start).fun for start in starts)
    assert error(product) <= found * (1 + 1e-6)
    assert error(product) == pytest.approx(found, rel=1e-3)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(4, 20), st.integers(0, 999))
def test_whitened_scores_are_never_worse(dim: int, rank: int, points: int, seed: int) -> None:
    w_q, w_k, x = normal(seed, dim, 6), normal(seed + 1, dim, 6), correlated(seed, points, 6)

    def error(whitened: bool) -> Tensor:
        change = LowRank(rank=rank, whitened=whitened)
        new_q, _ = fitted(change, [w_q, w_k], x, PATTERN)
        return (((x @ (w_q - new_q).T) @ (x @ w_k.T).T) ** 2).sum()

    scale = (((x @ w_q.T) @ (x @ w_k.T).T) ** 2).sum()
    assert error(True) <= error(False) + 1e-6 * scale


# Quantized


@pytest.mark.parametrize(("bits", "group"), [(2, 5), (3, 128), (4, 1), (8, 4)])
def test_rounded_to_the_nearest_number_of_the_group(bits: int, group: int) -> None:
    w = normal(0, 4, 13) + 0.5
    w[1] = 0.0
    w[2] = w[2].abs()
    (new,) = fitted(Quantize(bits=bits, group=group), [w], normal(1, 3, 13))
    for row in range(4):
        for start in range(0, 13, group):
            some = w[row, start : start + group].numpy()
            low, high = min(some.min(), 0), max(some.max(), 0)
            step = (high - low) / (2**bits - 1)
            shift = round(-low / step) if step else 0
            numbers = np.array([step * (k - shift) for k in range(2**bits)])
            nearest = numbers[np.abs(some[:, None] - numbers).argmin(1)]
            np.testing.assert_allclose(new[row, start : start + group], nearest, atol=1e-12)
            assert len(set(new[row, start : start + group].tolist())) <= 2**bits
    assert (new[1] == 0).all()


@settings(deadline=None, max_examples=40)
@given(
    st.integers(2, 5), st.integers(1, 9), st.integers(1, 9), st.integers(1, 20), st.integers(0, 99)
)
def test_calibrated_is_never_worse_than_rounding(
    bits: int, group: int, width: int, points: int, seed: int
) -> None:
    w, x = normal(seed, 5, width), correlated(seed, points, width)
    (nearest,) = fitted(Quantize(bits=bits, group=group), [w], x)
    (calibrated,) = fitted(Quantize(bits=bits, group=group, calibrated=True), [w], x)
    for row in range(5):
        errors = [output_error(w[row, None], m[row, None], x) for m in (calibrated, nearest)]
        assert errors[0] <= errors[1] * (1 + 1e-9) + 1e-12


def test_calibrated_is_better_where_inputs_are_correlated() -> None:
    w, x = normal(0, 32, 64), correlated(1, 200, 64)
    (nearest,) = fitted(Quantize(bits=3, group=32), [w], x)
    (calibrated,) = fitted(Quantize(bits=3, group=32, calibrated=True), [w], x)
    assert output_error(w, calibrated, x) < 0.5 * output_error(w, nearest, x)


@pytest.mark.parametrize("group", [4, 128])
def test_making_up_is_optimal_brain_quantization_in_order(group: int) -> None:
    """Column after column; the columns behind then solve least squares exactly, every time."""
    w, x = normal(0, 3, 10), correlated(1, 60, 10)
    second = x.T @ x / 60
    damped = (second + 0.01 * second.diagonal().mean() * torch.eye(10)).numpy()
    rows = []
    for row in w.numpy():
        left, done = row.copy(), np.zeros(10)
        for i in range(10):
            if i % group == 0:
                some = left[i : i + group]
                low, high = min(some.min(), 0), max(some.max(), 0)
                step, top = (high - low) / 7, 7
                zero = round(-low / step)
            number = min(max(round(left[i] / step) + zero, 0), top)
            done[i] = step * (number - zero)
            rest = slice(i + 1, 10)  # make up for all errors so far: minimise (w - v) H (w - v)ᵀ
            errors = (row - done)[: i + 1]
            best = -np.linalg.solve(damped[rest, rest], damped[rest, : i + 1] @ errors)
            left[rest] = row[rest] - best
        rows.append(done)
    made = making_up(w, second, 3, group).weights(group)
    np.testing.assert_allclose(made, np.array(rows), atol=1e-9)


def test_eight_bits_are_nearly_all() -> None:
    w = normal(0, 20, 100)
    (new,) = fitted(Quantize(bits=8), [w], w)
    assert float((new - w).abs().max()) <= float(w.max() - w.min()) / 255 / 2 * 1.001


def test_output_errors_are_those_of_the_data() -> None:
    w, x = normal(0, 3, 5), correlated(1, 11, 5)
    other = to_nearest(w, 2, 5).weights(5)
    expected = ((x @ (w - other).T) ** 2).mean(0)
    np.testing.assert_allclose(output_errors(w, other, x.T @ x / 11), expected, rtol=1e-10)


# Pruned


@pytest.mark.parametrize("density", [0.0, 0.29, 0.5, 0.71, 1.0])
@pytest.mark.parametrize("by", ["magnitude", "wanda"])
def test_masks_are_those_of_brute_force(density: float, by: str) -> None:
    w, x = normal(0, 6, 100), correlated(1, 30, 100) * torch.logspace(-2, 2, 100)
    (new,) = fitted(Prune(density=density, by=by), [w], x)
    norms = [1.0 if by == "magnitude" else float(x[:, j].norm()) for j in range(100)]
    for row in range(6):
        worth = sorted(range(100), key=lambda j: (abs(float(w[row, j])) * norms[j], j))
        gone = set(worth[: 100 - round(100 * density)])
        assert {j for j in range(100) if new[row, j] == 0} == gone
        assert all(new[row, j] == w[row, j] for j in range(100) if j not in gone)


@pytest.mark.parametrize(
    "view",
    [
        *(Prune(density=0.5, by=by) for by in ("magnitude", "wanda")),
        *(Quantize(bits=4, group=20, calibrated=calibrated) for calibrated in (False, True)),
        *(LowRank(rank=4, whitened=whitened) for whitened in (False, True)),
    ],
    ids=str,
)
def test_a_larger_size_is_nearer_to_the_model(view: WeightChange) -> None:
    sizes = {"density": [0.25, 0.5, 0.75], "bits": [2, 4, 8], "rank": [4, 16, 60]}[view.size_name]
    w, x = normal(0, 60, 100), correlated(1, 300, 100)
    made = [type(view)(**view.get_params() | {view.size_name: size}) for size in sizes]
    errors = [float((x @ (w - fitted(one, [w], x)[0]).T).square().sum()) for one in made]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("quantize(bits=1)@0.mlp", "bits must be a whole number from 2 to 8; got 1"),
        ("quantize(bits=3.5)@0.mlp", "bits must be a whole number"),
        ("quantize(bits=4, group=0)@0.mlp", "group must be a whole number from 1"),
        ("quantize(bits=4, calibrated=3)@0.mlp", "calibrated must be one of"),
        ("prune(density=1.5)@0.mlp", "density must be a number from 0 to 1; got 1.5"),
        ("prune(density=0.5, by=luck)@0.mlp", "by must be one of magnitude, wanda; got 'luck'"),
        ("low_rank(rank=0)@0.mlp", "rank must be a whole number, 1 or more"),
        ("quantize(bits=4)+prune(density=0.5)@0.mlp", "quantize needs a site of its own"),
    ],
)
def test_what_makes_no_sense_is_refused(spec: str, match: str) -> None:
    with pytest.raises(AnamorphError, match=match):
        parse(spec)


def test_it_maps_no_activations() -> None:
    with pytest.raises(AnamorphError, match=r"prune\(density=0.5\) changes weights"):
        Prune(density=0.5)(torch.zeros(3))


def test_sizes_make_families() -> None:
    proxies = parse("quantize(bits=[2,3,4,8], calibrated=true)@*.mlp")
    assert [p.size for p in proxies] == [2, 3, 4, 8]
    assert {p.family for p in proxies} == {"quantize(calibrated=true)@*.mlp"}
    assert {(p.size_name, p.method) for p in proxies} == {("bits", "quantize")}
