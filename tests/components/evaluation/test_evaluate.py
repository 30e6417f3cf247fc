import json
import random

import numpy as np
import pyarrow as pa
import pytest
import torch
from kfp import dsl
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from llm_finetune.components.evaluation.evaluate import step
from llm_finetune.components.evaluation.evaluate.component import evaluate as card
from llm_finetune.components.evaluation.evaluate.generation import Answer, Prompt, figures
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError

END = 2


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A tiny base, an adapter with random weights (so that base and tuned differ), and 12 validation rows."""
    folder = tmp_path_factory.mktemp("evaluate")
    base = tiny_model(folder / "base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(1)
    tuned = get_peft_model(
        model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    )
    tuned.save_pretrained(folder / "ft")
    tokenizer.save_pretrained(folder / "ft")
    GenerationConfig(eos_token_id=[END], pad_token_id=3).save_pretrained(folder / "ft")
    generator = random.Random(3)
    rows = []
    for index in range(12):
        prompt = [generator.randrange(4, 300) for _ in range(generator.randrange(2, 12))]
        completion = [*tokenizer(f'{{"n": "{index}"}}')["input_ids"], END]
        rows.append({"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion, "row": index})
    lists = pa.list_(pa.int32())
    tokens = pa.Table.from_pylist(rows, pa.schema([("input_ids", lists), ("labels", lists), ("row", pa.int64())]))
    texts = pa.table({"prompt": [f"<prompt {i}>" for i in range(12)], "completion": ["-"] * 12})
    for name, table in (("tokens", tokens), ("sft", texts)):
        with tables.ShardWriter(folder / name, table.schema) as writer:
            writer.write(table)
    return {
        "model_config": base,
        "ft_result": folder / "ft",
        "val_tokens": folder / "tokens",
        "val_sft": folder / "sft",
    }


def reference(model, rows) -> np.ndarray:
    sums = []
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
        sums.append(-sum(float(logits[i, label]) for i, label in enumerate(row["labels"][1:]) if label != -100))
    return np.array(sums)


def test_losses_are_those_of_a_plain_loop_for_both_models_on_the_same_rows(inputs, tmp_path):
    metrics, _ = step.evaluate(
        **inputs, eval_page=tmp_path / "page.html", settings=step.Settings(max_new_tokens=4, tokens_per_batch=40)
    )
    rows = tables.head(inputs["val_tokens"], 99).to_pylist()
    tokens = sum(label != -100 for row in rows for label in row["labels"])
    model = AutoModelForCausalLM.from_pretrained(inputs["model_config"], dtype=torch.float32)
    base = reference(model, rows)
    tuned = reference(PeftModel.from_pretrained(model, inputs["ft_result"]), rows)
    assert metrics["base_loss"] == pytest.approx(base.sum() / tokens, abs=2e-6)
    assert metrics["tuned_loss"] == pytest.approx(tuned.sum() / tokens, abs=2e-6)
    assert metrics["loss_delta"] == pytest.approx((tuned - base).sum() / tokens, abs=2e-6)
    assert metrics["loss_delta_ci_low"] < metrics["loss_delta"] < metrics["loss_delta_ci_high"]
    assert metrics["tuned_perplexity"] == pytest.approx(np.exp(tuned.sum() / tokens), rel=1e-4)
    assert (metrics["samples_used"], metrics["completion_tokens"], metrics["generated_samples"]) == (12, tokens, 12)


def test_answers_are_those_of_generating_one_prompt_at_a_time(inputs, tmp_path):
    _, samples = step.evaluate(**inputs, eval_page=tmp_path / "page.html", settings=step.Settings(max_new_tokens=6))
    rows = {row["row"]: row for row in tables.head(inputs["val_tokens"], 99).to_pylist()}
    model = AutoModelForCausalLM.from_pretrained(inputs["model_config"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(inputs["ft_result"])
    assert len(samples) == 12
    for sample in samples:
        row = rows[sample["row"]]
        prompt = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
        written = model.generate(
            torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=END, pad_token_id=3
        )
        assert sample["base"]["text"] == tokenizer.decode(written[0, len(prompt) :], skip_special_tokens=True)
        assert sample["prompt"] == f"<prompt {sample['row']}>"
        assert sample["reference"] == f'{{"n": "{sample["row"]}"}}'


def test_the_same_seed_measures_the_same_rows(inputs, tmp_path):
    settings = step.Settings(max_samples=5, generate_samples=5, max_new_tokens=1)
    first, second = (step.evaluate(**inputs, eval_page=tmp_path / "page.html", settings=settings) for _ in range(2))
    assert first == second
    assert first[0]["samples_used"] == 5


def answers(*texts: str, stopped: bool = True) -> list[Answer]:
    return [Answer(text, 3, stopped) for text in texts]


def test_json_answers_are_compared_field_by_field():
    prompts = [Prompt(0, [1], '{"a": "1", "b": "2"}'), Prompt(1, [1], '{"a": "3"}')]
    found = figures(prompts, answers('{"b": "2", "a": "x"}', "no object"))
    assert found == {
        "exact_match": 0.0,
        "stop_rate": 1.0,
        "mean_tokens": 3.0,
        "json_valid": 0.5,
        "field_f1": 2 * 1 / (3 + 2),
    }
    perfect = figures(prompts, answers(' {"a": "1", "b": "2"}', '{"a": "3"}', stopped=False))
    assert (perfect["exact_match"], perfect["field_f1"], perfect["json_valid"], perfect["stop_rate"]) == (
        1.0,
        1.0,
        1.0,
        0.0,
    )


def test_plain_text_has_no_json_figures():
    assert set(figures([Prompt(0, [1], "12")], answers("12"))) == {"exact_match", "stop_rate", "mean_tokens"}


def test_no_validation_row_is_an_error(inputs, tmp_path):
    schema = tables.schema(inputs["val_tokens"])
    with tables.ShardWriter(tmp_path / "none", schema):
        pass
    with pytest.raises(UserError, match="are empty: nothing can be measured"):
        step.evaluate(
            **{**inputs, "val_tokens": tmp_path / "none"}, eval_page=tmp_path / "page.html", settings=step.Settings()
        )
    assert not (tmp_path / "page.html").exists()


def test_the_card_writes_figures_and_answers(inputs, tmp_path):
    report = dsl.Metrics(uri=str(tmp_path / "report.json"))
    artifacts = {
        name: (dsl.Model if name in ("model_config", "ft_result") else dsl.Dataset)(uri=str(path))
        for name, path in inputs.items()
    }
    card.python_func(**artifacts, eval_report=report, eval_page=dsl.HTML(uri=str(tmp_path / "page.html")), max_new_tokens=3,
                     settings={"generate_samples": 2.0})  # fmt: skip
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["metrics"]["base_loss"] == report.metadata["base_loss"]
    assert len(content["samples"]) == 2
    assert "<script" not in (tmp_path / "page.html").read_text()
