"""A tiny base model and an adapter for it, and runs of Merge & Export on them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from llm_finetune.components.serving.merge_export import step

BASE = {"model_name": "org/base", "revision": "abc", "licence": "apache-2.0", "content_hash": "sha256:b"}
TRAINING = {
    "val_loss": 1.25,
    "epochs": 2.0,
    "content_hash": "sha256:a",
    "inputs": {"train_tokens": "sha256:t"},
    "origin": {"dataset_source": "org/rows", "dataset_revision": "0" * 40, "dataset_rows": 1200},
    "seed": 7,
}


def make_adapter(base: Path, folder: Path, load_in_4bit: bool = False, **lora: object) -> Path:
    """Writes an `ft_result` whose adapter is as far from zero as a trained one."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(**{**options, **lora})
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight += torch.randn_like(weight) * 0.1
            elif "modules_to_save" in name:
                weight += torch.randn_like(weight) * 0.02
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.save_pretrained(folder)
    GenerationConfig(bos_token_id=1, eos_token_id=[2], pad_token_id=3).save_pretrained(folder)
    rows = [torch.randint(4, 400, (24 + 3 * i,)).tolist() for i in range(16)]
    labelled = [{"input_ids": row, "labels": [-100] * 8 + row[8:]} for row in rows]
    (folder / "parity_prompts.json").write_text(json.dumps(labelled))
    (folder / "training.json").write_text(json.dumps({"load_in_4bit": load_in_4bit}))
    return folder


@pytest.fixture(name="one_thread", scope="module", autouse=True)
def fixture_one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from a second thread, and on a busy machine wait for it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(name="base", scope="module")
def fixture_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_model(tmp_path_factory.mktemp("base") / "model", dtype="bfloat16")
    (folder / "LICENSE").write_text("Apache License")
    return folder


@pytest.fixture(name="trained", scope="module")
def fixture_trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(base, tmp_path_factory.mktemp("adapter") / "ft_result")


@pytest.fixture(name="adapter")
def fixture_adapter(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "ft_result")


def export(base: Path, adapter: Path, tmp_path: Path, **settings: object) -> step.MergeFacts:
    chosen = step.Settings(**settings)
    return step.merge_export(
        base, adapter, tmp_path / "merged", tmp_path / "summary.md", chosen, BASE, TRAINING, {"tuned_loss": 0.5}
    )
