"""Which precision a processor is given: what it multiplies in hardware, and what oneDNN may use of it."""

import json

import pytest
import torch

from llm_finetune.components.serving.vllm_serve.local import commands, model_folder
from llm_finetune.components.shared import processor
from llm_finetune.components.shared.modeling.device import fast_dtype

OLD, NEW = "flags\t\t: fpu avx2 avx512f avx512_vnni\n", "flags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16 amx_tile\n"


@pytest.mark.parametrize(
    ("flags", "allowed", "dtype"),
    [
        (OLD, "", "float32"),
        (OLD, "DEFAULT", "float32"),
        (NEW, "", "bfloat16"),
        (NEW, "DEFAULT", "bfloat16"),
        (NEW, "AVX512_CORE_AMX", "bfloat16"),
        (NEW, "AVX512_CORE_BF16", "bfloat16"),
        (NEW, "avx512_core_vnni", "float32"),
        (NEW, "AVX2", "float32"),
        (None, "", "float32"),
    ],
)
def test_training_evaluation_and_server_choose_alike(tmp_path, monkeypatch, flags, allowed, dtype):
    if flags:
        (tmp_path / "cpuinfo").write_text(flags)
    monkeypatch.setattr(processor, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
    assert fast_dtype() == getattr(torch, dtype)
    for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja"):
        (tmp_path / name).write_text("x")
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 512, "dtype": "bfloat16"}))
    launch = commands.vllm(model_folder.read(tmp_path), "m", 0, tmp_path, 256, 0, "auto")
    assert launch.dtype == dtype and f"--dtype={dtype}" in launch.command
