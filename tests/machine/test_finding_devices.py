"""Which device is meant, what is said where there is none, and what is left of the process."""

from types import SimpleNamespace

import pytest
import torch

from anamorph.auditing.sizes import usual_batch_tokens, usual_batches, usual_memory
from anamorph.errors import AnamorphError
from anamorph.machine import devices
from anamorph.machine.devices import (
    accelerator,
    find_device,
    matmul_precision,
    memory_of,
    out_of_memory,
)
from pretended import MEMORY, NAME, Pretended

GIB = 2**30


def test_auto_is_a_cuda_device_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
    assert accelerator(torch.device("cpu")) is None
    assert memory_of(torch.device("cpu")) is None
    with Pretended():
        assert find_device("auto") == find_device("cuda") == torch.device("cuda", 0)
        assert find_device("cuda:0") == find_device(torch.device("cuda")) == find_device("auto")
        assert find_device("cpu:0") == torch.device("cpu")
        assert accelerator(find_device("auto")) == NAME
        assert memory_of(find_device("auto")) == MEMORY


@pytest.mark.parametrize("name", ["tpu", "meta", "gpu", "", "cuda:x", "xla"])
def test_what_is_no_device(name: str) -> None:
    with pytest.raises(AnamorphError, match=f"auto, cpu, cuda, cuda:N or mps; got '{name}'"):
        find_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps"])
def test_what_is_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(AnamorphError, match=rf"device='{name}': torch .* sees no .* Give auto"):
        find_device(name)
    with Pretended():
        assert find_device("mps").type == accelerator(find_device("mps")) == "mps"
        with pytest.raises(AnamorphError, match=r"sees 1 cuda device\(s\) here"):
            find_device("cuda:1")


def test_products_are_as_before_afterwards() -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyError), matmul_precision("high"):
        assert torch.get_float32_matmul_precision() == "high"
        raise KeyError
    with matmul_precision(None):
        assert torch.get_float32_matmul_precision() == before
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(AnamorphError, match="matmul"), matmul_precision("low"):
        pass


@pytest.mark.parametrize(
    ("memory", "vocabulary", "tokens", "stack"),
    [
        (79 * GIB, 50_257, 8_192, 1 * GIB),  # an H100 or A100, GPT-2
        (140 * GIB, 50_257, 16_384, 2 * GIB),  # an H200
        (79 * GIB, 128_256, 4_096, 1 * GIB),  # Llama 3
        (79 * GIB, 40, 65_536, 1 * GIB),  # Dyck
        (8 * GIB, 50_257, 1_024, GIB // 8),
        (1 * GIB, 50_257, 1_024, GIB // 64),  # never fewer tokens than on a CPU
    ],
)
def test_sizes_follow_from_the_memory_that_a_device_has(
    memory: int, vocabulary: int, tokens: int, stack: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which are powers of two, so that cards of nearly the same memory have the same."""
    told = SimpleNamespace(total_memory=memory)
    monkeypatch.setattr(devices.torch.cuda, "get_device_properties", lambda device: told)
    device = torch.device("cuda", 0)
    model = SimpleNamespace(device=device, vocabulary=vocabulary, batch_tokens=1_024)
    assert usual_batch_tokens(model) == tokens  # type: ignore[arg-type]
    assert usual_memory(model) == stack  # type: ignore[arg-type]
    assert usual_batches(model) == 1  # type: ignore[arg-type]


def test_a_device_of_another_kind_has_the_sizes_of_a_cpu() -> None:
    """A model on it is audited as it is; how much it holds, nobody has asked."""
    model = SimpleNamespace(device=torch.device("xpu", 0), vocabulary=50_257, batch_tokens=1_024)
    assert memory_of(model.device) is None
    assert accelerator(model.device) == "xpu"
    assert usual_batch_tokens(model) == 1_024  # type: ignore[arg-type]
    assert usual_memory(model) == 8 * 2**20  # type: ignore[arg-type]


def test_which_errors_say_that_memory_ran_out() -> None:
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
    assert out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"))
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not out_of_memory(RuntimeError("Expected all tensors to be on the same device"))
