"""What the hardware at hand computes fast."""

import torch

from llm_finetune.components.shared.processor import cpu_multiplies_bfloat16


def fast_dtype() -> torch.dtype:
    """Returns bfloat16 where products in it are fast (Ampere GPUs and newer, some CPUs), else float32."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32
