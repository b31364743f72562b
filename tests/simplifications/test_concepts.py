"""Binary concepts that are trained here: a truth of on and off is found again."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from anamorph.errors import AnamorphError
from anamorph.simplifications import check_simplification
from anamorph.simplifications.methods.concepts import Concepts

TRUTH = 3 * normalize(torch.randn(16, 32, generator=torch.Generator().manual_seed(1)), dim=1)


def drawn(points: int, seed: int) -> tuple[Tensor, Tensor]:
    """What is on, and the points that it makes, with noise."""
    draw = torch.Generator().manual_seed(seed)
    on = (torch.rand(points, len(TRUTH), generator=draw) < 0.2).float()
    return on, on @ TRUTH + 2 + 0.3 * torch.randn(points, TRUTH.shape[1], generator=draw)


@pytest.fixture(scope="module")
def fitted() -> Concepts:
    return Concepts(concepts=24, passes=30).fit(drawn(8_000, 1)[1])


def test_concepts_that_data_are_made_of_are_found(fitted: Concepts) -> None:
    on, x = drawn(1_000, 2)
    spread = (x - x.mean(dim=0)).square().sum()
    noise = (on @ TRUTH + 2 - x).square().sum() / spread
    assert (fitted(x) - x).square().sum() / spread < noise + 0.15
    near = normalize(fitted.decoder_, dim=1) @ normalize(TRUTH, dim=1).T  # [concept, truth]
    assert near.max(dim=0).values.median() > 0.9
    agree = (fitted.encode(x)[:, near.argmax(dim=0)] == on).float().mean(dim=0)
    assert agree.median() > 0.9


def test_a_point_is_the_sum_of_what_is_on(fitted: Concepts) -> None:
    x = drawn(50, 3)[1].double()
    encoder, encoder_bias, decoder, bias = (
        value.double().numpy()
        for value in (fitted.encoder_, fitted.encoder_bias_, fitted.decoder_, fitted.bias_)
    )
    for point, made in zip(x.numpy(), fitted(x).numpy(), strict=True):
        written = bias.copy()
        for concept in range(24):
            if point @ encoder[:, concept] + encoder_bias[concept] > 0:
                written += decoder[concept]
        np.testing.assert_allclose(made, written, rtol=1e-9)
    x[3, 4] = torch.nan
    assert fitted(x)[3].isnan().all()


def test_a_share_expected_beforehand_is_drawn_towards() -> None:
    x = torch.randn(6_000, 8, generator=torch.Generator().manual_seed(4))
    shares = [
        float(Concepts(concepts=16, share=share, passes=10).fit(x).encode(x).mean())
        for share in (0.05, 0.5)
    ]
    assert shares[0] < shares[1] - 0.1
    assert shares[1] == pytest.approx(0.5, abs=0.05)


def test_a_seed_says_which_draws() -> None:
    x = drawn(500, 5)[1]
    one, again, other = (Concepts(concepts=4, seed=seed).fit(x).encoder_ for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_it_keeps_the_laws() -> None:
    check_simplification(Concepts(concepts=6, batch=64))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"concepts": 0}, "concepts must be a whole number, 1 or more"),
        ({"concepts": 4, "share": 1.0}, "share must be"),
    ],
)
def test_settings_that_make_no_sense(given: dict[str, float], message: str) -> None:
    with pytest.raises(AnamorphError, match=message):
        Concepts(**given).validate()
