"""QLoRA: the frozen weights are NF4 and stay as they are, the adapter has the paper's types, and it trains."""

from pathlib import Path

import bitsandbytes
import datasets
import pytest
import torch
from peft import LoraConfig, PeftModel
from tiny import tiny_model
from token_rows import documents, write
from transformers import AutoConfig, AutoTokenizer

from llm_finetune.components.shared.modeling.architecture import add_adapter, empty_model
from llm_finetune.components.shared.modeling.causal_lm import load_base
from llm_finetune.components.shared.modeling.memory import TrainingPlan, adapter_bytes
from llm_finetune.components.training.finetune_lora import step
from llm_finetune.components.training.finetune_lora.build import build_trainer

SETTINGS = {"num_epochs": 2, "learning_rate": 2e-2, "dtype": "float32", "batch_size": 8, "logging_steps": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base") / "model")


def lora(folder: Path, **options: bool) -> Path:
    LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **options).save_pretrained(folder)
    return folder


def trainer_of(base: Path, tmp_path: Path, load_in_4bit: bool = True, **options: bool):
    rows = datasets.Dataset.from_list([{**row, "length": len(row["input_ids"])} for row in documents(16, seed=1)])
    return build_trainer(
        base, lora(tmp_path / "lora", **options), AutoConfig.from_pretrained(base), rows, rows,
        AutoTokenizer.from_pretrained(base), tmp_path / "out", step.Settings(**SETTINGS), False, load_in_4bit,
    )  # fmt: skip


def quantised(model) -> dict[str, bitsandbytes.nn.Linear4bit]:
    return {name: module for name, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)}


def test_all_linear_layers_but_the_head_are_nf4_with_double_quantisation(base):
    model = load_base(base, torch.float32, load_in_4bit=True)
    found = quantised(model)
    assert len(found) == 2 * 7
    for module in found.values():
        assert (module.weight.quant_type, module.weight.quant_state.nested) == ("nf4", True)
        assert module.compute_dtype == torch.bfloat16
        assert module.weight.dtype == torch.uint8
        # Where the CPU has AVX512-BF16, an evaluation would otherwise repack the weights into a layout without gradients.
        assert module.support_avx512bf16_for_cpu is False
    assert type(model.lm_head) is torch.nn.Linear


def test_the_adapter_s_types_are_those_of_the_paper(base, tmp_path):
    """Bfloat16 over 4 bit, as TRL has it; the magnitudes of DoRA, whose steps are too small for it, in float32."""
    model = trainer_of(base, tmp_path, use_dora=True).model
    types = {name.split(".")[-3]: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    assert types == {"lora_A": torch.bfloat16, "lora_B": torch.bfloat16, "lora_magnitude_vector": torch.float32}
    plain = trainer_of(base, tmp_path, load_in_4bit=False).model
    assert {p.dtype for p in plain.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_what_is_trained_takes_the_memory_that_is_estimated(base, tmp_path, load_in_4bit, use_dora):
    trainer = trainer_of(base, tmp_path, load_in_4bit, use_dora=use_dora)
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    trainer.train()
    moments = [
        state for parameter in trained for state in trainer.optimizer.state[parameter].values() if state.numel() > 1
    ]
    found = sum(tensor.nbytes for tensor in [*trained, *trained, *moments])  # a gradient has its weight's type
    adapter, _ = add_adapter(empty_model(base), LoraConfig.from_pretrained(tmp_path / "lora"))
    assert found == adapter_bytes(adapter, TrainingPlan(1, False, load_in_4bit, False, False, value_bytes=4))


def test_an_evaluation_leaves_the_quantised_weights_as_they_are(base, tmp_path):
    trainer = trainer_of(base, tmp_path)
    before = {name: module.weight.data.clone() for name, module in quantised(trainer.model).items()}
    first = trainer.evaluate()["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == first
    for name, module in quantised(trainer.model).items():
        assert torch.equal(module.weight.data, before[name])
        assert module.weight.quant_state is not None


def test_training_after_an_evaluation_is_training_without_one(base, tmp_path):
    write(tmp_path / "train", documents(16, seed=1))
    write(tmp_path / "val", documents(6, seed=2))
    found = {}
    for first in (True, False):
        out = tmp_path / str(first)
        facts = step.finetune_lora(
            base, lora(tmp_path / "lora"), tmp_path / "train", tmp_path / "val", out / "ft", out / "c.html",
            step.Settings(**SETTINGS, evaluate_first=first), load_in_4bit=True,
        )  # fmt: skip
        found[first] = (facts.train_loss, facts.val_loss, (out / "ft" / "adapter_model.safetensors").read_bytes())
    assert found[True] == found[False]
    assert found[True][0] < 5.5  # a random model knows one of 400 tokens: 6.0
    again = PeftModel.from_pretrained(load_base(base, torch.float32, load_in_4bit=True), tmp_path / "True" / "ft")
    row = documents(6, seed=2)[0]
    with torch.no_grad():
        assert again.eval()(torch.tensor([row["input_ids"]])).logits.isfinite().all()
