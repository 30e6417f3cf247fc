import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from kfp import dsl
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from tiny import tiny_model
from token_rows import END, documents, write
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.training.finetune_lora import step
from llm_finetune.components.training.finetune_lora.component import finetune_lora as card


@pytest.fixture
def inputs(tmp_path):
    LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM").save_pretrained(tmp_path / "lora")
    return {
        "model_config": tiny_model(tmp_path / "base"),
        "lora_config": tmp_path / "lora",
        "train_tokens": write(tmp_path / "train", documents(24, seed=1)),
        "val_tokens": write(tmp_path / "val", documents(10, seed=2)),
    }


def train(inputs, out: Path, **settings):
    chosen = step.Settings(
        **{"num_epochs": 2, "learning_rate": 1e-2, "logging_steps": 1, "dtype": "float32", **settings}
    )
    facts = step.finetune_lora(**inputs, ft_result=out / "ft", loss_curve=out / "curve.html", settings=chosen)
    return facts, hashlib.sha256((out / "ft" / "adapter_model.safetensors").read_bytes()).hexdigest()


def reference_loss(model, rows) -> float:
    """Σ nll / Σ completion tokens, one document at a time."""
    nll, tokens = 0.0, 0
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
        for position, label in enumerate(row["labels"][1:]):
            if label != -100:
                nll, tokens = nll - float(logits[position, label]), tokens + 1
    return nll / tokens


def test_the_reported_validation_loss_is_the_sum_over_tokens_of_the_saved_adapter(inputs, tmp_path):
    facts, _ = train(inputs, tmp_path / "a", batch_size=4)
    base = AutoModelForCausalLM.from_pretrained(inputs["model_config"], dtype=torch.float32)
    untouched = reference_loss(base, documents(10, 2))
    assert facts.val_loss == pytest.approx(
        reference_loss(PeftModel.from_pretrained(base, tmp_path / "a" / "ft"), documents(10, 2)), rel=1e-5
    )
    assert facts.val_loss < untouched
    assert (facts.steps, facts.epochs, facts.resumed_from_step) == (12, 2.0, 0)


@pytest.mark.parametrize(
    "how",
    [
        {"batch_size": 24},
        {"batch_size": 4, "gradient_accumulation_steps": 6},
        {"batch_size": 3, "gradient_accumulation_steps": 8},
    ],
)
@pytest.mark.parametrize("packed", [0, 2])
def test_the_loss_of_a_step_is_the_sum_over_the_tokens_of_its_whole_window(inputs, tmp_path, how, packed):
    """However the 24 documents of one step are cut into micro-batches, packed or not."""
    rows = documents(24, seed=1)
    if packed:
        inputs["train_tokens"] = write(tmp_path / "packed", rows, packed)
        how = {name: max(value // packed, 1) if name == "batch_size" else value for name, value in how.items()}
        if how == {"batch_size": 1, "gradient_accumulation_steps": 8}:
            how["gradient_accumulation_steps"] = 12
    train(inputs, tmp_path / "a", num_epochs=1, checkpoint_folder=str(tmp_path / "c"), evaluate_first=False, **how)
    history = json.loads(next((tmp_path / "c").glob("checkpoint-*/trainer_state.json")).read_text())["log_history"]
    first = next(entry["loss"] for entry in history if "loss" in entry)
    base = AutoModelForCausalLM.from_pretrained(inputs["model_config"], dtype=torch.float32)
    assert first == pytest.approx(reference_loss(base, rows), rel=2e-5)


def test_packed_and_padded_training_learn_the_same(inputs, tmp_path):
    padded, _ = train(inputs, tmp_path / "a", num_epochs=1, batch_size=24)
    inputs["train_tokens"] = write(tmp_path / "packed", documents(24, seed=1), packed=3)
    packed, _ = train(inputs, tmp_path / "b", num_epochs=1, batch_size=8)
    assert packed.val_loss == pytest.approx(padded.val_loss, rel=1e-5)
    first, second = (load_file(tmp_path / name / "ft" / "adapter_model.safetensors") for name in "ab")
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)


def test_the_same_inputs_give_the_same_adapter_bytes(inputs, tmp_path):
    assert train(inputs, tmp_path / "b")[1] == train(inputs, tmp_path / "c")[1]
    assert train(inputs, tmp_path / "d", seed=7)[1] != train(inputs, tmp_path / "b")[1]


SCRIPT = """
import json, sys
from llm_finetune.components.training.finetune_lora import step
job = json.loads(sys.argv[1])
step.finetune_lora(**job["inputs"], ft_result=job["out"] + "/ft", loss_curve=job["out"] + "/curve.html",
                   settings=step.Settings(**job["settings"]))
"""


def test_a_killed_training_goes_on_and_ends_with_the_same_bytes(inputs, tmp_path):
    settings = {"num_epochs": 3, "learning_rate": 1e-2, "dtype": "float32", "checkpoint_steps": 2}
    LoraConfig(r=4, lora_alpha=8, lora_dropout=0.2, target_modules="all-linear", task_type="CAUSAL_LM").save_pretrained(
        inputs["lora_config"]
    )
    _, whole = train(inputs, tmp_path / "whole", **settings, checkpoint_folder=str(tmp_path / "c1"))
    folder = tmp_path / "c2"
    job = {"inputs": {name: str(path) for name, path in inputs.items()}, "out": str(tmp_path / "killed"),
           "settings": {**settings, "checkpoint_folder": str(folder)}}  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(job)], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint-8").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (folder / "checkpoint-8").exists()
    assert not (tmp_path / "killed" / "ft").exists()
    facts, resumed = train(inputs, tmp_path / "resumed", **settings, checkpoint_folder=str(folder))
    assert facts.resumed_from_step >= 8
    assert resumed == whole


def test_a_torn_checkpoint_is_passed_over(inputs, tmp_path, capsys):
    settings = {"num_epochs": 2, "checkpoint_steps": 2, "checkpoint_folder": str(tmp_path / "c")}
    _, whole = train(inputs, tmp_path / "a", **settings)
    newest = tmp_path / "c" / "checkpoint-12"
    weights = newest / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    facts, again = train(inputs, tmp_path / "b", **settings)
    assert facts.resumed_from_step == 10
    assert again == whole
    assert f"{newest} is incomplete" in capsys.readouterr().out


def test_checkpoints_of_another_training_are_refused_by_name(inputs, tmp_path):
    train(inputs, tmp_path / "a", num_epochs=1, checkpoint_folder=str(tmp_path / "c"))
    with pytest.raises(UserError, match=r"belong to another training \(learning_rate: 0.01 there, 0.001 here\)"):
        train(inputs, tmp_path / "b", num_epochs=1, learning_rate=1e-3, checkpoint_folder=str(tmp_path / "c"))
    assert not (tmp_path / "b" / "ft").exists()


def test_early_stopping_keeps_the_best_adapter(inputs, tmp_path):
    facts, _ = train(
        inputs, tmp_path / "a", num_epochs=40, learning_rate=0.3, lr_scheduler="constant", early_stopping_patience=2
    )
    assert facts.steps < 40 * 6
    base = AutoModelForCausalLM.from_pretrained(inputs["model_config"], dtype=torch.float32)
    saved = reference_loss(PeftModel.from_pretrained(base, tmp_path / "a" / "ft"), documents(10, 2))
    assert saved == pytest.approx(facts.val_loss, rel=1e-5)


def test_what_serving_needs_lies_beside_the_adapter(inputs, tmp_path):
    train(inputs, tmp_path / "a", num_epochs=1)
    result = tmp_path / "a" / "ft"
    assert GenerationConfig.from_pretrained(result).eos_token_id == [END]
    assert (result / "chat_template.jinja").exists()
    assert json.loads((result / "training.json").read_text()) == {"load_in_4bit": False}
    prompts = json.loads((result / "parity_prompts.json").read_text())
    assert [row["input_ids"] for row in prompts] == [row["input_ids"] for row in documents(10, 2)]


def test_a_padding_token_that_the_model_has_no_embedding_for_fills_no_row_and_is_not_served(inputs, tmp_path):
    plain, _ = train(inputs, tmp_path / "a", num_epochs=1, batch_size=4)
    tokenizer = AutoTokenizer.from_pretrained(inputs["train_tokens"] / "tokenizer")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == AutoModelForCausalLM.from_pretrained(inputs["model_config"]).config.vocab_size
    tokenizer.save_pretrained(inputs["train_tokens"] / "tokenizer")
    facts, _ = train(inputs, tmp_path / "b", num_epochs=1, batch_size=4)
    assert (facts.train_loss, facts.val_loss) == (plain.train_loss, plain.val_loss)
    result = tmp_path / "b" / "ft"
    assert AutoTokenizer.from_pretrained(result).pad_token_id == END
    assert GenerationConfig.from_pretrained(result).pad_token_id == END


def test_the_card_reports_losses_and_lineage(inputs, tmp_path):
    artifacts = {
        "model_config": dsl.Model(
            uri=str(inputs["model_config"]), metadata={"load_in_4bit": False, "content_hash": "sha256:m"}
        ),
        "lora_config": dsl.Artifact(uri=str(inputs["lora_config"]), metadata={"content_hash": "sha256:l"}),
        "train_tokens": dsl.Dataset(uri=str(inputs["train_tokens"]), metadata={"content_hash": "sha256:t"}),
        "val_tokens": dsl.Dataset(uri=str(inputs["val_tokens"]), metadata={"content_hash": "sha256:v"}),
        "ft_result": dsl.Model(uri=str(tmp_path / "ft")),
        "train_metrics": dsl.Metrics(uri=str(tmp_path / "metrics")),
        "loss_curve": dsl.HTML(uri=str(tmp_path / "curve.html")),
        "training_logs": dsl.Artifact(uri=str(tmp_path / "logs")),
    }
    card.python_func(**artifacts, num_epochs=1, settings={"logging_steps": 1.0, "seed": 5})
    metrics = artifacts["train_metrics"].metadata
    assert metrics["steps"] == 6
    assert json.loads((tmp_path / "metrics").read_text())["val_loss"] == metrics["val_loss"]
    assert artifacts["ft_result"].metadata["seed"] == 5
    assert artifacts["ft_result"].metadata["inputs"] == {
        "model_config": "sha256:m", "lora_config": "sha256:l", "train_tokens": "sha256:t", "val_tokens": "sha256:v"
    }  # fmt: skip
    assert "<svg" in (tmp_path / "curve.html").read_text()
