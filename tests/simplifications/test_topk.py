"""Sparse coders that are trained here: gradients by autograd, a truth that is found again."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from anamorph.errors import AnamorphError
from anamorph.models.sites import Site
from anamorph.simplifications import check_simplification, sparse
from anamorph.simplifications.formats.reading import read_coder
from anamorph.simplifications.formats.stored import site_named
from anamorph.simplifications.methods.topk import TopKSAE, TopKTranscoder
from anamorph.simplifications.sparse import DEAD_SHARE, Parts, Trainer

READ, FEATURES, K, POINTS = 10, 40, 5, 64


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_autograd(parts: Parts, x: Tensor, y: Tensor, dead: Tensor, tied: bool, variance: float):
    """The loss written with dense matrices, and its gradient."""
    parts = Parts(*(part.double().requires_grad_() for part in parts))
    x = x.double()
    before = (x - parts.bias if tied else x) @ parts.encoder.T + parts.encoder_bias

    def only(before: Tensor, k: int) -> Tensor:
        kept = before.topk(k).indices
        return torch.zeros_like(before).scatter(-1, kept, before.gather(-1, kept))

    error = only(before, K).relu() @ parts.decoder + parts.bias - y + x @ parts.skip.T
    loss = error.square().sum() / variance
    total = loss
    if len(dead):
        explained = only(before[:, dead], min(len(dead), READ // 2)) @ parts.decoder[dead]
        total = loss + DEAD_SHARE * (explained + error.detach()).square().sum() / variance
    return loss.item(), Parts(*torch.autograd.grad(total, parts))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dead", [[], [3], [3, 8, 20, 21, 22, 30]])
@pytest.mark.parametrize("by_zeros", [True, False])
def test_gradients_are_those_of_autograd(
    tied: bool, dead: list[int], by_zeros: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_zeros:  # as where torch cannot multiply sparse matrices
        monkeypatch.setattr(sparse, "SPARSE", False)
    draw, written = random(), READ if tied else 7
    shapes = ((FEATURES, READ), (FEATURES,), (FEATURES, written), (written,), (written, READ))
    parts = Parts(*(torch.randn(shape, generator=draw) for shape in shapes))
    x = torch.randn(POINTS, READ, generator=draw)
    y = x if tied else torch.randn(POINTS, written, generator=draw)
    which = torch.tensor(dead, dtype=torch.int64)
    expected_loss, expected = by_autograd(parts, x, y, which, tied, 3.0)
    chunk = Trainer(parts, K, tied, 3.0).gradients(x, y, which)
    assert chunk.loss == pytest.approx(expected_loss, rel=1e-5)
    for made, wanted in zip(chunk.gradient, expected, strict=True):
        assert wanted.abs().max() > 1
        torch.testing.assert_close(made.double(), wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max())


def test_workers_change_nothing() -> None:
    """Chunks are fixed, and their gradients are summed in their order."""
    draw = random()
    x = torch.randn(2_000, READ, generator=draw)
    made = []
    for workers in (1, 3):
        start = random(1)
        shapes = ((FEATURES, READ), (FEATURES,), (FEATURES, READ), (READ,))
        trainer = Trainer(Parts(*(torch.randn(s, generator=start) for s in shapes)), K, True, 9.0)
        for _ in range(3):
            trainer.step(x, x, 0.01, workers)
        made.append(trainer.parts[:4])
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))


def sums_of_directions(points: int, truth: Tensor, draw: torch.Generator) -> Tensor:
    on = torch.rand(points, len(truth), generator=draw) < 3 / len(truth)
    return 4 * (torch.rand(points, len(truth), generator=draw) + 0.5) * on @ truth + 7


def test_directions_that_data_are_made_of_are_found() -> None:
    draw = random(5)
    truth = normalize(torch.randn(24, 32, generator=draw), dim=1)
    sae = TopKSAE(features=32, k=4, passes=30, batch=256, rate=4e-3)
    sae.fit(sums_of_directions(8_000, truth, draw))
    points = sums_of_directions(1_000, truth, draw)
    made = sae(points)
    assert unexplained(made, points) < 0.1
    closest = (normalize(sae.decoder_, dim=1) @ truth.T).max(dim=0).values
    assert closest.median() > 0.95
    active = (points - sae.bias_) @ sae.encoder_ + sae.encoder_bias_
    kept = active.topk(4).indices
    by_hand = torch.zeros_like(active).scatter(-1, kept, active.gather(-1, kept).relu())
    torch.testing.assert_close(made, by_hand @ sae.decoder_ + sae.bias_, rtol=1e-4, atol=1e-4)


def test_a_scale_of_the_data_changes_nothing_but_the_scale() -> None:
    points = torch.randn(600, 6, generator=random(2)) + 2
    one, other = (TopKSAE(features=12, k=3, batch=64).fit(scale * points) for scale in (1, 64))
    torch.testing.assert_close(64 * one(points), other(64 * points), rtol=1e-3, atol=1e-2)


def layer(x: Tensor) -> Tensor:
    """What stands in for an MLP: an affine map, and 24 neurons."""
    draw = random(9)
    into, out, straight = (
        torch.randn(shape, generator=draw) for shape in ((8, 24), (24, 6), (8, 6))
    )
    return torch.relu(x @ into - 3) @ out + x @ straight + 5


def unexplained(made: Tensor, wanted: Tensor) -> float:
    return float((made - wanted).square().sum() / (wanted - wanted.mean(dim=0)).square().sum())


def test_a_transcoder_learns_what_a_layer_does() -> None:
    draw = random(6)
    x, held_out = (torch.randn(n, 8, generator=draw) + 2 for n in (6_000, 500))
    given = {"features": 48, "k": 8, "passes": 15, "batch": 256, "rate": 8e-3}
    for skip in (False, True):
        fitted = TopKTranscoder(skip=skip, **given).fit(x, layer(x))
        made = fitted(held_out)
        assert unexplained(made, layer(held_out)) < 0.08
        active = held_out @ fitted.encoder_ + fitted.encoder_bias_
        kept = active.topk(8).indices
        by_hand = torch.zeros_like(active).scatter(-1, kept, active.gather(-1, kept).relu())
        by_hand = by_hand @ fitted.decoder_ + fitted.bias_
        by_hand += held_out @ fitted.skip_ if skip else 0
        torch.testing.assert_close(made, by_hand, rtol=1e-4, atol=1e-4)


def test_a_skip_connection_alone_learns_an_affine_map() -> None:
    x = 3 * torch.randn(4_000, 5, generator=random(1)) + 1
    matrix = torch.randn(5, 7, generator=random(2))
    fitted = TopKTranscoder(features=4, k=1, skip=True, passes=20, batch=128, rate=1e-2)
    fitted.fit(x, x @ matrix - 2)
    assert unexplained(fitted(x), x @ matrix - 2) < 1e-3
    assert fitted.reads(Site(3, None, "mlp")) == (Site(3, None, "mlp_input"),)


def test_only_the_loss_for_dead_features_revives_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "DEAD_AFTER", 5)
    truth = normalize(torch.randn(24, 32, generator=random(5)), dim=1)
    x = sums_of_directions(512, truth, random(6))
    dead = {}
    for share in (0.0, DEAD_SHARE):
        monkeypatch.setattr(sparse, "DEAD_SHARE", share)
        encoder = normalize(torch.randn(32, 32, generator=random(7)), dim=1)
        bias = torch.zeros(32).index_fill(0, torch.arange(8, 32), -10.0)  # never active
        parts = Parts(encoder, bias, encoder.clone(), x.mean(dim=0))
        trainer = Trainer(parts, 4, True, float((x - x.mean(dim=0)).square().sum(dim=1).mean()))
        errors = [trainer.step(x, x, 0.05 if step < 250 else 0.01, 1) for step in range(400)]
        dead[share] = int((trainer.idle > 100).sum()), errors[-1]
    assert dead[0.0][0] == 24
    assert dead[DEAD_SHARE][0] < 8
    assert dead[DEAD_SHARE][1] < 0.5 * dead[0.0][1]


@pytest.mark.parametrize("name", ["sae", "transcoder"])
def test_threads_and_cuts_of_the_stream_change_no_byte(name: str) -> None:
    draw = random(8)
    x = torch.randn(3_000, 12, generator=draw)
    given = {"features": 64, "k": 6, "batch": 1_100, "pool": 1_200, "passes": 2}
    coder = TopKSAE(**given) if name == "sae" else TopKTranscoder(skip=True, **given)
    points = (x,) if name == "sae" else (x, x.tanh()[:, :7])
    before = torch.get_num_threads()
    fits = []
    try:
        for threads, size in ((1, 3_000), (2, 3_000), (3, 1), (2, 777)):
            torch.set_num_threads(threads)
            statistic = coder.statistic(*(part.shape[1] for part in points))
            for some in torch.cat(points, dim=1).split(size):
                statistic.update(some)
            fits.append(coder.clone().learn(statistic).state_dict())
    finally:
        torch.set_num_threads(before)
    for other in fits[1:]:
        assert all(torch.equal(value, other[key]) for key, value in fits[0].items())


def test_few_steps_are_told() -> None:
    x = torch.randn(1_600, 6, generator=random())
    with pytest.warns(UserWarning, match=r"k=3, batch=32\) was learnt in 50 steps, .* passes="):
        TopKSAE(features=12, k=3, batch=32).fit(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TopKSAE(features=12, k=3, batch=32, passes=4).fit(x)


def test_a_rate_that_is_too_high_is_told() -> None:
    x = torch.randn(2_000, 6, generator=random())
    with pytest.raises(AnamorphError, match=r"grown beyond all bounds .* give a smaller one"):
        TopKTranscoder(features=12, k=3, skip=True, batch=64, rate=1e30).fit(x, x)


@pytest.mark.parametrize(
    "tried",
    [
        TopKSAE(features=12, k=3, batch=64),
        TopKTranscoder(features=12, k=3, batch=64),
        TopKTranscoder(features=12, k=3, batch=64, skip=True),
    ],
)
def test_they_keep_the_laws(tried: TopKSAE | TopKTranscoder) -> None:
    check_simplification(tried)


def test_what_was_learnt_is_written_for_others(tmp_path: Path) -> None:
    x = torch.randn(500, 6, generator=random(3))
    sae = TopKSAE(features=12, k=3, batch=64).fit(x)
    skips = TopKTranscoder(features=12, k=3, batch=64, skip=True).fit(x, x.tanh())
    for coder, site, reads, name in (
        (sae, Site(3, None, "residual"), Site(3, None, "residual"), "blocks.3.hook_resid_post"),
        (sae, Site(1, 2, "key"), Site(1, 2, "key"), "blocks.1.attn.hook_k.2"),
        (skips, Site(4, None, "mlp"), Site(4, None, "mlp_input"), "layers.4.mlp"),
    ):
        path = coder.export(tmp_path, site, "gpt2")
        assert path == tmp_path / name
        stored = read_coder(path, 0)
        assert site_named(stored.reads, stored.head) == reads
        assert site_named(stored.writes, stored.head) == site
        torch.testing.assert_close(stored.coder()(x), coder(x), rtol=1e-6, atol=1e-6)
    with pytest.raises(AnamorphError, match=r"no name for the site 3\.1\.pattern"):
        sae.export(tmp_path, Site(3, 1, "pattern"), "gpt2")
    narrow = TopKTranscoder(features=12, k=3, batch=64).fit(x, x[:, :4])
    with pytest.raises(AnamorphError, match="this reads 6 and writes 4"):
        narrow.export(tmp_path, Site(4, None, "mlp"), "gpt2")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"features": 4, "k": 5}, "k must be at most the 4 features"),
        ({"features": 0, "k": 1}, "features must be a whole number, 1 or more"),
        ({"features": 4, "k": 2, "rate": 0}, "rate must be a number above 0"),
        ({"features": 4, "k": 2, "pool": 0}, "pool must be a whole number"),
    ],
)
def test_settings_that_make_no_sense(given: dict[str, int], message: str) -> None:
    with pytest.raises(AnamorphError, match=message):
        TopKSAE(**given).validate()
