"""Number formats that a processor is fast at."""

import torch


def is_fast_at_bfloat16(device: torch.device | str) -> bool:
    """Whether a device multiplies matrices in bfloat16 much faster than in float32.

    Of NVIDIA's GPUs these are the ones of compute capability 8 (Ampere) or above; of CPUs those
    with AVX512-BF16 or AMX.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    on_cpu = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cpu" and on_cpu
