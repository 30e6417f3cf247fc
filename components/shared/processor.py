"""What the processor at hand computes fast; without torch, which not every card has."""

import os
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
FLAGS = ("avx512_bf16", "amx_bf16")
# Values of ONEDNN_MAX_CPU_ISA that keep oneDNN, which multiplies for PyTorch and for vLLM, from these instructions.
OLDER = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")


def cpu_has_bfloat16() -> bool:
    """Tells whether the CPU has bfloat16 products; elsewhere they are emulated and many times slower than float32."""
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in OLDER:
        return False
    try:
        flags = CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(flag in flags for flag in FLAGS)
