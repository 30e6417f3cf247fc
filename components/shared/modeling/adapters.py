"""Where an adapter can be used, according to its configuration."""

from collections.abc import Mapping
from typing import Any

INITS_THAT_CHANGE_THE_BASE = ("pissa", "olora")
"""Values of PEFT's `init_lora_weights` that modify the base model's weights when the adapter is loaded."""
VLLM_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM accepts for `--max-lora-rank`."""
MAX_LORA_RANK = VLLM_LORA_RANKS[-1]


def changes_base(config: Mapping[str, Any]) -> bool:
    """Returns whether loading an adapter changes its base model's weights.

    Args:
        config: PEFT's adapter_config.json.
    """
    return str(config.get("init_lora_weights")).startswith(INITS_THAT_CHANGE_THE_BASE)


def serving_obstacle(config: Mapping[str, Any]) -> str:
    """Returns why vLLM can't serve an adapter on a shared base model; empty if it can.

    Args:
        config: PEFT's adapter_config.json.
    """
    if config.get("use_dora"):
        return "it is a DoRA adapter"
    if config.get("modules_to_save"):
        return f"it trains {', '.join(config['modules_to_save'])} in full"
    if changes_base(config):
        return f"its initial values ({config['init_lora_weights']}) change the base"
    return f"its rank {config['r']} is above {MAX_LORA_RANK}" if (config.get("r") or 0) > MAX_LORA_RANK else ""


def vllm_lora_rank(rank: int) -> int:
    """Returns the smallest value of vLLM's `--max-lora-rank` that covers a rank."""
    return next(supported for supported in VLLM_LORA_RANKS if supported >= rank)
