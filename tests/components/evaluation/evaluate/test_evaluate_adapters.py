"""What is measured is the base as it is and the adapter as it is served, whatever either brings along."""

import json
import shutil

import pyarrow as pa
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_finetune.components.evaluation.evaluate.adapter import load_adapter, use_adapter
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError

IDS = torch.arange(4, 40)[None]


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_the_base_is_exact_where_the_adapter_s_initial_values_were_taken_out_of_it(inputs, tmp_path, init):
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=init, task_type="CAUSAL_LM")
    trained = get_peft_model(load(inputs["model_config"]), lora).eval()
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            if "lora_B" in name:
                weight += 0.05
        wanted = load(inputs["model_config"])(IDS).logits, trained(IDS).logits
    shutil.copytree(inputs["ft_result"], tmp_path / "ft")
    trained.save_pretrained(tmp_path / "ft")
    model = load_adapter(load(inputs["model_config"]), tmp_path / "ft").eval()
    with torch.no_grad():
        for tuned in (False, True, False, True):
            with use_adapter(model, tuned):
                found = model(IDS).logits
            assert torch.allclose(found, wanted[tuned], atol=1e-4)
            assert tuned or torch.equal(found, wanted[0])


def test_answers_are_drawn_without_the_penalties_of_the_base_s_generation_config(inputs, evaluated, tmp_path):
    plain = evaluated(max_new_tokens=8, generate_samples=4).samples
    base = shutil.copytree(inputs["model_config"], tmp_path / "base")
    (base / "generation_config.json").write_text(json.dumps({"repetition_penalty": 9.0, "eos_token_id": 2}))
    assert evaluated(max_new_tokens=8, generate_samples=4, model_config=base).samples == plain


def test_a_row_whose_last_answer_was_cut_off_is_no_prompt(inputs, evaluated, tmp_path):
    rows = tables.head(inputs["val_tokens"], 99).to_pylist()
    for row in rows[:3]:
        row["input_ids"], row["labels"] = [*row["input_ids"], 9, 10], [*row["labels"], -100, -100]
    table = pa.Table.from_pylist(rows, tables.schema(inputs["val_tokens"]))
    with tables.ShardWriter(tmp_path / "cut", table.schema) as writer:
        writer.write(table)
    evaluation = evaluated(max_new_tokens=2, few_shot=0, val_tokens=tmp_path / "cut")
    assert evaluation.metrics["samples_used"] == 12 and evaluation.metrics["generated_samples"] == 9
    assert {sample.row for sample in evaluation.samples} == set(range(3, 12))
    assert evaluation.notes[0].startswith("3 of 12 rows have no generated answers: max_length truncated")


@pytest.mark.parametrize("pad", ["[PAD]", None])
def test_no_batch_is_filled_with_a_token_that_the_model_has_no_embedding_for(inputs, evaluated, tmp_path, pad):
    plain = evaluated(max_new_tokens=4, generate_samples=4, few_shot=0)
    folder = shutil.copytree(inputs["ft_result"], tmp_path / "ft")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": pad}) if pad else setattr(tokenizer, "pad_token", None)
    assert tokenizer.pad_token_id in (400, None)
    tokenizer.save_pretrained(folder)
    found = evaluated(max_new_tokens=4, generate_samples=4, few_shot=0, ft_result=folder)
    assert (found.metrics, found.samples) == (plain.metrics, plain.samples)


def test_a_damaged_adapter_is_a_user_error(inputs, tmp_path):
    folder = shutil.copytree(inputs["ft_result"], tmp_path / "ft")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(UserError, match=r"the adapter in .* does not fit the base model"):
        load_adapter(load(inputs["model_config"]), folder)
