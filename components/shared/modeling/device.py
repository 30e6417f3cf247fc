"""Precisions that the hardware computes fast."""

import torch


def cpu_has_bfloat16() -> bool:
    """Returns whether the CPU has bfloat16 instructions; without them, bfloat16 is emulated and slower than float32."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def fast_dtype() -> torch.dtype:
    """Returns bfloat16 where the hardware supports it (Ampere GPUs and newer, some CPUs), else float32."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if cpu_has_bfloat16() else torch.float32
