import pytest
import torch
from torch import nn

from anamorph.training.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(8, 8), (32, 8), (8, 32)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    made = orthogonal(x)
    expected = torch.linalg.svdvals(x) / torch.linalg.matrix_norm(x)[:, None]
    for _ in range(5):  # what the iteration does to each singular value alone
        expected = 3.4445 * expected - 4.775 * expected**3 + 2.0315 * expected**5
    values = torch.linalg.svdvals(made)
    torch.testing.assert_close(values, expected.sort(descending=True)[0], atol=1e-3, rtol=0)
    assert values.median() > 0.7 and values.max() < 1.25
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    middle = u.mT @ made @ v.mT  # diagonal if the directions are those of x
    off = middle - torch.diag_embed(middle.diagonal(dim1=-2, dim2=-1))
    assert off.abs().max() < 1e-4
    assert orthogonal(torch.zeros(2, *shape)).abs().max() == 0


def test_steps_are_those_of_torch_but_for_its_bfloat16() -> None:
    torch.manual_seed(0)
    start = [torch.randn(16, 16), torch.randn(16, 16), torch.randn(64, 16), torch.randn(16, 64)]
    found = []
    for kind in (Muon, torch.optim.Muon):
        torch.manual_seed(1)
        parameters = [nn.Parameter(x.clone()) for x in start]
        optimizer = kind(parameters, lr=0.1, weight_decay=0.2)
        for _ in range(6):
            for p in parameters:
                p.grad = torch.randn_like(p)
            optimizer.step()
        found.append(parameters)
    for ours, theirs, before in zip(*found, start, strict=True):
        moved = (theirs - before).norm()
        assert (ours - theirs).norm() < 0.02 * moved


def test_a_parameter_without_a_gradient_stays() -> None:
    one, other = (nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    one.grad = torch.eye(4)
    Muon([one, other], lr=0.1).step()
    assert (other == 1).all() and not (one == 1).all()
