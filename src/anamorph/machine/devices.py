"""Where models compute: the processor or an accelerator, what it holds, how exact its products are.

Apple's GPUs (`mps`) have no float64, so whatever needs it is done on the host.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from anamorph.errors import AnamorphError, require

Matmul = Literal["highest", "high"]
"""How float32 matrices are multiplied: `highest` in float32; `high` in TF32 or sums of bfloat16s,
where the device has them, which is faster and less exact."""


def find_device(name: str | torch.device) -> torch.device:
    """The device of a name, if it is there.

    Args:
        name: `auto` for the first CUDA device, or the CPU if there is none; `cpu`, `cuda`, `cuda:1`
            or `mps`.

    Raises:
        AnamorphError: if it is no such name, or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise AnamorphError(f"device must be auto, cpu, cuda, cuda:N or mps; got {str(name)!r}.")
    if device.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "mps":
        count = int(torch.backends.mps.is_available())
    index = device.index or 0
    if index >= count:
        there = f"{count} {device.type} device(s)" if count else f"no {device.type} device"
        built = "" if torch.version.cuda or device.type == "mps" else ", built without CUDA,"
        raise AnamorphError(
            f"device={str(name)!r}: torch {torch.__version__}{built} sees {there} here. Give auto "
            "or cpu, or install a torch for your accelerator (pytorch.org)."
        )
    return torch.device(device.type, index)


def accelerator(device: torch.device) -> str | None:
    """What kind of accelerator a device is, such as `NVIDIA H100 80GB HBM3`; None for the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return None if device.type == "cpu" else device.type


def memory_of(device: torch.device) -> int | None:
    """The bytes that a GPU of NVIDIA, AMD or Apple has in all; None for the CPU, or if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(torch.mps.recommended_max_memory()) if device.type == "mps" else None


def is_fast_at_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices in bfloat16 much faster than in float32.

    Of NVIDIA's GPUs these are the ones of compute capability 8 (Ampere) or above; of CPUs those
    with AVX512-BF16 or AMX.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    on_cpu = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cpu" and on_cpu


def in_float64(x: Tensor) -> Tensor:
    """A tensor in float64: where it is, or on the host where the device has no such numbers."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out; what was freed since goes back to the device."""
    told = ("can't allocate memory", "out of memory")  # of the CPU, of MPS
    found = isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in told)
    if found and torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


@contextmanager
def matmul_precision(precision: str | None) -> Iterator[None]:
    """Multiply float32 matrices so; afterwards as before. None leaves it to the process."""
    if precision is None:
        yield
        return
    require("matmul", precision, among=("highest", "high", "medium"))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
