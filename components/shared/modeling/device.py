"""Precisions that the hardware computes fast."""

import torch

from llm_finetune.components.shared.processor import cpu_has_bfloat16


def fast_dtype() -> torch.dtype:
    """Returns bfloat16 where the hardware supports it (Ampere GPUs and newer, some CPUs), else float32."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if cpu_has_bfloat16() else torch.float32
