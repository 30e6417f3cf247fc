"""Every card says the same of the types that a model's weights are stored in."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_model

from llm_finetune.components.model.load_model import step
from llm_finetune.components.serving.merge_export.merge import stored_dtype
from llm_finetune.components.serving.merge_export.weights import StoredWeights
from llm_finetune.components.shared.modeling.base_model import INDEX, SINGLE


@pytest.mark.parametrize(
    ("stored", "exported"),
    [
        ("float32", torch.float32), ("float16", torch.float16), ("bfloat16", torch.bfloat16),
        ("float64", torch.bfloat16), ("float8_e4m3fn", torch.bfloat16),
    ],
)  # fmt: skip
def test_the_type_of_most_values_counts_over_all_files(tmp_path: Path, stored: str, exported: torch.dtype) -> None:
    model = tiny_model(tmp_path / "model")
    (model / SINGLE).unlink()
    shards = {"a.safetensors": ("large", stored), "b.safetensors": ("small", "int32")}
    for file, (name, dtype) in shards.items():
        save_file({name: torch.ones(9 if name == "large" else 2, dtype=getattr(torch, dtype))}, model / file)
    index = {"weight_map": {name: file for file, (name, _) in shards.items()}}
    (model / INDEX).write_text(json.dumps(index))
    facts = step.load_model(tmp_path / "out", tmp_path / "summary.md", step.Settings(model_name=str(model)))
    assert facts.dtype == {"float8_e4m3fn": "f8_e4m3"}.get(stored, stored)
    assert StoredWeights(model).types() == {facts.dtype: 9, "i32": 2}
    assert stored_dtype(model) == exported
