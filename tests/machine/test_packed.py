"""Objects on their way to other processes, against pickle."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import anamorph as am
from anamorph.machine.packed import Packed, pack, unpack
from plain_modules import Transformer
from random_tasks import random_task


class Named:
    def __init__(self) -> None:
        self.weight = nn.Parameter(torch.arange(6.0).reshape(2, 3).T, requires_grad=False)
        self.half = nn.Parameter(torch.tensor([1.5, -2.0], dtype=torch.bfloat16))
        self.one = nn.Parameter(torch.tensor(3.0))
        self.none = nn.Parameter(torch.empty(0, 4))
        self.buffer = torch.ones(3)
        self.array = np.arange(5)
        self.same = self.weight


def test_what_is_unpacked_is_what_was_packed() -> None:
    before = Named()
    after = unpack(pack(before))
    for name in ("weight", "half", "one", "none", "buffer"):
        mine, theirs = getattr(before, name), getattr(after, name)
        assert type(mine) is type(theirs), name
        assert torch.equal(mine, theirs) and mine.dtype == theirs.dtype, name
        assert mine.requires_grad == theirs.requires_grad, name
    assert after.same is after.weight
    np.testing.assert_array_equal(after.array, before.array)


def test_parameters_and_arrays_are_read_where_they_lie() -> None:
    packed = pack(Named())
    held = Packed(packed.data, [buffer.copy() for buffer in packed.buffers])  # as in a store
    after = unpack(held)
    places = {buffer.ctypes.data for buffer in held.buffers}
    assert after.weight.data_ptr() in places
    assert after.array.ctypes.data in places
    assert after.buffer.data_ptr() not in places, "it may be written to"
    aside = sum(buffer.nbytes for buffer in packed.buffers)
    assert len(packed.data) + aside < len(pickle.dumps(Named())) + 2000


@pytest.mark.parametrize("made", ["decoder", "hooked"])
def test_a_model_has_its_fingerprint_and_its_logits(made: str) -> None:
    torch.manual_seed(0)
    task = random_task(23)
    if made == "hooked":
        module = Transformer().eval()
        model: Any = am.HookedModel(module, {"*.residual": "blocks.*"}, threads=True)
    else:
        model = am.Decoder(am.DecoderConfig(vocabulary=23, context=16)).eval()
    other = unpack(pack(model))
    assert other.fingerprint() == model.fingerprint()
    assert (other.parallel, other.context, other.sites) == (
        model.parallel,
        model.context,
        model.sites,
    )
    proxies = "pca(rank=2)@0.residual"
    one, two = (am.audit(m, task, proxies, sequences=10).results for m in (model, other))
    assert one.equals(two)
