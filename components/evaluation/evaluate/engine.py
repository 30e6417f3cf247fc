"""Which engine writes the answers: vLLM where it can, since it answers many prompts at once, else transformers."""

import importlib.util
import json
from collections.abc import Mapping
from typing import Any

import torch

from llm_finetune.components.evaluation.evaluate import vllm_process
from llm_finetune.components.evaluation.evaluate.candidates import Findings
from llm_finetune.components.evaluation.evaluate.generation import Answer, Assignment, answer_of
from llm_finetune.components.evaluation.evaluate.models import Models
from llm_finetune.components.shared.engine import engines
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.adapters import serving_obstacle, vllm_lora_rank

FREE_SHARE = 0.9
"""Share of the GPU's free memory that vLLM may take; the rest is for its CUDA context and what torch rounds up."""

Given = dict[str, list[Answer]]


def answers_of_vllm(
    models: Models, assignments: Mapping[str, Assignment], engine: str, findings: Findings
) -> tuple[Given, str]:
    """Lets vLLM answer, in a process of its own that has ended when this returns.

    To be called before any weight is loaded here, so that two models never share the GPU.

    Args:
        models: Base and tuned model.
        assignments: What each contender is to answer.
        engine: `auto`, `vllm` or `transformers`.
        findings: Takes a note when vLLM failed and transformers has to answer.

    Returns:
        Answers by contender, none where transformers has to write them; and who writes them and why, for the page.

    Raises:
        UserError: If `vllm` was asked for and cannot answer.
    """
    if not assignments:
        return {}, ""
    if engine == "transformers":
        return {}, "transformers (as generation_engine says)"
    reason = obstacle(models, assignments, without_gpu=engine == "vllm")
    try:
        if reason and engine == "vllm":
            raise vllm_process.VllmError(reason)
        given, writer = ({}, f"transformers ({reason})") if reason else _asked(models, assignments)
    except vllm_process.VllmError as error:
        if engine == "vllm":
            raise UserError(
                f"generation_engine = 'vllm': {error}. Set it to auto or transformers{error.log}"
            ) from error
        findings.note(f"vLLM could not answer the prompts, so transformers did, more slowly: {error}")
        print(error.log.removeprefix(". "), flush=True)
        given, writer = {}, f"transformers (vLLM failed: {error})"
    print(f"answers are written by {writer}", flush=True)
    return given, writer


def obstacle(models: Models, assignments: Mapping[str, Assignment], without_gpu: bool) -> str:
    """Returns why vLLM can't answer as transformers would, or an empty string.

    Args:
        models: Base and tuned model.
        assignments: What each contender is to answer.
        without_gpu: Whether a build for CPUs will do.
    """
    if not importlib.util.find_spec("vllm"):
        return "vLLM is not installed"
    if reason := missing_gpu(without_gpu):
        return reason
    if reason := serving_obstacle(_adapter_config(models)):
        return f"vLLM can't serve the adapter, for {reason}"
    if models.load_in_4bit or getattr(models.config, "quantization_config", None):
        return "the base is quantised, and vLLM would compute it in another precision than it was trained in"
    longest = _longest(assignments)
    if models.context and longest > models.context:
        return f"a prompt and its answer may take {longest} tokens, and the model's context is {models.context}"
    return ""


def missing_gpu(without_gpu: bool) -> str:
    """Returns why vLLM has no GPU here, or an empty string; see `obstacle`."""
    if engines.vllm_is_for_cpu():
        return "" if without_gpu else "the installed vLLM is a build for CPUs"
    return "" if torch.cuda.is_available() else "there is no GPU"


def _asked(models: Models, assignments: Mapping[str, Assignment]) -> tuple[Given, str]:
    contenders = {
        name: {
            "prompts": [prompt.input_ids for prompt in own.prompts],
            "tuned": own.tuned,
            "seed": own.decoding.seed,
            "sampling": own.decoding.vllm_options(),
        }
        for name, own in assignments.items()
    }
    request = {"engine": _engine(models, assignments), "adapter": str(models.adapter), "contenders": contenders}
    version, written = vllm_process.answers(request)
    given = {
        name: [answer_of(tokens, models.ends, models.tokenizer) for tokens in tokens_of_all]
        for name, tokens_of_all in written.items()
    }
    return given, f"vLLM {version}"


def _engine(models: Models, assignments: Mapping[str, Assignment]) -> dict[str, Any]:
    """Returns the arguments of `vllm.LLM`."""
    longest, dtype = _longest(assignments), str(models.dtype).removeprefix("torch.")
    return {
        "model": models.base,
        "dtype": dtype,
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": vllm_lora_rank(_adapter_config(models)["r"]),
        "max_model_len": longest,
        "skip_tokenizer_init": True,
        # Not what the base's own generation_config.json says: that would change the figures.
        "generation_config": "vllm",
        "load_format": "safetensors",
        # Compiling would take longer than some hundred answers do.
        "enforce_eager": True,
        **_memory(models, longest, dtype),
    }


def _memory(models: Models, longest: int, dtype: str) -> dict[str, Any]:
    if engines.vllm_is_for_cpu():
        token_bytes = engines.cache_values(models.config.to_dict()) * engines.BYTES[dtype]
        fitting, cache = engines.cpu_cache(token_bytes, longest)
        if fitting < longest:
            raise vllm_process.VllmError(f"{longest} tokens of KV cache take more than a quarter of the free memory")
        return {"kv_cache_memory_bytes": cache}
    free, total = torch.cuda.mem_get_info()
    return {"gpu_memory_utilization": FREE_SHARE * free / total}


def _longest(assignments: Mapping[str, Assignment]) -> int:
    """Returns the tokens of the longest prompt and the longest answer to it."""
    return max(
        len(prompt.input_ids) + own.decoding.max_new_tokens for own in assignments.values() for prompt in own.prompts
    )


def _adapter_config(models: Models) -> dict[str, Any]:
    return dict(json.loads((models.adapter / "adapter_config.json").read_text(encoding="utf-8")))
