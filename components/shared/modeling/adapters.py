"""What an adapter's configuration says about where it can be used."""

from collections.abc import Mapping
from typing import Any

CHANGES_BASE = ("pissa", "olora")
"""Initial values (PEFT's `init_lora_weights`) that change the base model's own weights when the adapter is loaded."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM has kernels for."""
MOST_RANK = RANKS[-1]


def changes_base(config: Mapping[str, Any]) -> bool:
    """Tells whether loading an adapter changes its base model's weights."""
    return str(config.get("init_lora_weights")).startswith(CHANGES_BASE)


def unserved(config: Mapping[str, Any]) -> str:
    """Returns why vLLM can't serve an adapter on a base that it shares, or an empty string.

    Args:
        config: PEFT's adapter_config.json.
    """
    if config.get("use_dora"):
        return "it is a DoRA adapter"
    if config.get("modules_to_save"):
        return f"it trains {', '.join(config['modules_to_save'])} in full"
    if changes_base(config):
        return f"its initial values ({config['init_lora_weights']}) change the base"
    return f"its rank {config['r']} is above {MOST_RANK}" if (config.get("r") or 0) > MOST_RANK else ""


def lora_rank(rank: int) -> int:
    """Returns the least of the ranks that vLLM has kernels for which holds an adapter's."""
    return next(size for size in RANKS if size >= rank)
