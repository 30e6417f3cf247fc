import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from kfp import dsl
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_finetune.components.evaluation.evaluate import loss, models, step
from llm_finetune.components.evaluation.evaluate.component import evaluate as card
from llm_finetune.components.evaluation.metrics import METRIC_NAMES
from llm_finetune.components.shared import questions, tables
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling import losses as shared_losses
from llm_finetune.components.shared.questions import Question

END = 2


def reference(model, rows) -> np.ndarray:
    sums = []
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
        sums.append(-sum(float(logits[i, label]) for i, label in enumerate(row["labels"][1:]) if label != -100))
    return np.array(sums)


def test_losses_are_those_of_a_plain_loop_for_both_models_on_the_same_rows(inputs, evaluated, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_losses, "MAX_LOGITS", 400 * 7)  # seven tokens' logits at a time
    metrics = evaluated(generate_samples=0, tokens_per_batch=40).metrics
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
    assert (metrics["samples_used"], metrics["completion_tokens"], metrics["generated_samples"]) == (12, tokens, 0)
    examples = pq.read_table(tmp_path / "examples")
    assert np.allclose(examples["base_nll"], base, atol=1e-4) and np.allclose(examples["tuned_nll"], tuned, atol=1e-4)


def test_a_processor_that_multiplies_bfloat16_gives_the_same_losses_to_its_precision(evaluated, monkeypatch):
    exact = evaluated(generate_samples=0).metrics
    monkeypatch.setattr(models, "fast_dtype", lambda: torch.bfloat16)
    rounded = evaluated(generate_samples=0).metrics
    for name in ("base_loss", "tuned_loss"):
        assert rounded[name] == pytest.approx(exact[name], rel=1e-2) and rounded[name] != exact[name]


def test_every_metric_can_be_computed_again_from_the_examples(evaluated, tmp_path):
    evaluation = evaluated(max_new_tokens=6, few_shot=2, temperature=0.7, slice_by="source", answer_pattern=r"\{.*")
    metrics = evaluation.metrics
    examples = pq.read_table(tmp_path / "examples")
    column = {name: np.array(examples[name]) for name in ("completion_tokens", "base_nll", "tuned_nll")}
    for model in ("base", "tuned"):
        assert column[f"{model}_nll"].sum() / column["completion_tokens"].sum() == pytest.approx(
            metrics[f"{model}_loss"], abs=1e-6
        )
    for candidate in ("base", "base_few_shot", "tuned", "base_sampled", "tuned_sampled"):
        answers = examples[candidate].to_pylist()
        assert sum(a["tokens"] for a in answers) / 12 == pytest.approx(metrics[f"{candidate}_mean_tokens"], abs=1e-6)
        for metric in ("exact_match", "stop_rate", "rouge_l", "chrf", "json_valid", "pattern_valid", "repetition"):
            mean = sum(answer[metric] for answer in answers) / 12
            assert mean == pytest.approx(metrics[f"{candidate}_{metric}"], abs=1e-6)
        weights = [answer["field_f1_weight"] for answer in answers]
        hits = sum(answer["field_f1"] * weight for answer, weight in zip(answers, weights, strict=True))
        assert hits / sum(weights) == pytest.approx(metrics[f"{candidate}_field_f1"], abs=1e-6)
    assert set(examples["slice_source"].to_pylist()) == {"web", "book"}
    by_source = {one.name: one for one in evaluation.slices if one.by == "source"}
    books = examples.filter(np.array(examples["slice_source"]) == "book")
    assert (by_source["book"].rows, by_source["web"].rows) == (4, 8)
    assert by_source["book"].base_loss == pytest.approx(
        np.array(books["base_nll"]).sum() / np.array(books["completion_tokens"]).sum(), abs=1e-6
    )
    assert set(metrics) <= set(METRIC_NAMES)


def test_answers_are_those_of_generating_one_prompt_at_a_time(inputs, evaluated):
    samples = evaluated(max_new_tokens=6, few_shot=2).samples
    rows = {row["row"]: row for row in tables.head(inputs["val_tokens"], 99).to_pylist()}
    model = AutoModelForCausalLM.from_pretrained(inputs["model_config"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(inputs["ft_result"])
    assert len(samples) == 12
    for sample in samples:
        row = rows[sample.row]
        prompt = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
        written = model.generate(
            torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=END, pad_token_id=3
        )
        assert sample.answers["base"].text == tokenizer.decode(written[0, len(prompt) :], skip_special_tokens=True)
        assert sample.prompt == f"<prompt {sample.row}>"
        assert sample.reference == f'{{"n": "{sample.row}"}}'
    assert any(sample.answers["base_few_shot"].text != sample.answers["base"].text for sample in samples)


def test_the_same_seed_measures_the_same_rows_and_samples_the_same_answers(evaluated):
    settings = dict(max_samples=5, generate_samples=5, max_new_tokens=3, temperature=1.0)
    first, second = (evaluated(**settings) for _ in range(2))
    assert first == second
    assert first.metrics["samples_used"] == 5
    assert any(sample.answers["tuned_sampled"].text != sample.answers["tuned"].text for sample in first.samples)


def test_without_training_rows_the_few_shot_baseline_is_left_out_with_a_note(evaluated):
    evaluation = evaluated(max_new_tokens=2, generate_samples=2, train_tokens=None)
    assert "base_few_shot_exact_match" not in evaluation.metrics
    assert evaluation.notes == [
        "base_few_shot was not measured: its examples come from train_tokens, which is not connected"
    ]
    assert not evaluation.problems


def test_memory_that_runs_out_makes_batches_smaller_and_changes_no_metric(evaluated, monkeypatch, capsys):
    whole = evaluated(max_new_tokens=4, generate_samples=4)
    measured = loss.completion_nll
    sizes = []

    def small_memory(model, batch):
        sizes.append(batch["input_ids"].numel())
        if sizes[-1] > 60:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return measured(model, batch)

    monkeypatch.setattr(loss, "completion_nll", small_memory)
    squeezed = evaluated(max_new_tokens=4, generate_samples=4)
    assert max(sizes) > 60 and min(sizes) <= 60
    assert {name: value for name, value in squeezed.metrics.items() if "_ci_" not in name} == pytest.approx(
        {name: value for name, value in whole.metrics.items() if "_ci_" not in name}, rel=1e-5, abs=2e-6
    )
    assert squeezed.notes[0].startswith("loss: out of memory with ")
    assert "warning: loss: out of memory" in capsys.readouterr().out


def test_a_row_that_fits_no_memory_is_named(evaluated, monkeypatch):
    def no_memory(model, batch):
        raise MemoryError

    monkeypatch.setattr(loss, "completion_nll", no_memory)
    with pytest.raises(UserError, match=r"out of memory with a single row of \d+ tokens. Lower max_length"):
        evaluated()


def test_a_loss_that_is_no_number_ends_the_evaluation(inputs, evaluated, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(inputs["ft_result"], tmp_path / "diverged")
    weights = load_file(tmp_path / "diverged/adapter_model.safetensors")
    save_file(
        {name: value * float("nan") for name, value in weights.items()}, tmp_path / "diverged/adapter_model.safetensors"
    )
    with pytest.raises(
        UserError, match=r"the tuned model's loss is not finite \(nan\) on validation row 0 .* diverged"
    ):
        evaluated(ft_result=tmp_path / "diverged")
    assert not (tmp_path / "page.html").exists() and not (tmp_path / "examples").exists()


def test_no_validation_row_is_an_error(inputs, evaluated, tmp_path):
    with tables.ShardWriter(tmp_path / "none", tables.schema(inputs["val_tokens"])):
        pass
    with pytest.raises(UserError, match="are empty: nothing can be measured"):
        evaluated(val_tokens=tmp_path / "none")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"slice_by": "sorce"}, "slice_by = 'sorce': the validation rows have no such column; did you mean 'source'?"),
        ({"tasks": "tests/none.yaml"}, "there is no file tests/none.yaml"),
    ],
)
def test_a_name_that_does_not_exist_costs_no_model_time(evaluated, monkeypatch, settings, message):
    monkeypatch.setattr(models, "load_base", lambda *args, **options: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match=re.escape(message)):
        evaluated(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text_scores": "rouge"}, "'rouge' is not a score; did you mean 'rouge_l'?"),
        ({"answer_pattern": "["}, "not a regular expression"),
        ({"judge_endpoint": "http://key@judge/v1", "judge_model": "m"}, "A URL must not contain keys"),
        (
            {"endpoint": "http://a/v1", "endpoint_model": "m", "generate_samples": 0},
            "endpoint has no prompts to answer",
        ),
        ({"judge_endpoint": "http://judge/v1"}, "judge_endpoint and judge_model belong together"),
        ({"endpoint": "vllm:8000", "endpoint_model": "m"}, "not a URL such as"),
        ({"judge_endpoint": "http://j/v1", "judge_model": "m", "judge_baseline": "served"}, "endpoint is empty"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(UserError) as error:
        step.Settings.of(settings)
    assert message in str(error.value)


def test_the_old_name_of_judge_baseline_is_accepted_with_a_warning(capsys):
    settings = step.Settings.of({"settings": {"judge_rival": "base_few_shot"}})
    assert settings.judge_baseline == "base_few_shot"
    assert "warning: judge_rival was renamed to judge_baseline" in capsys.readouterr().out


def test_the_card_writes_metrics_answers_and_examples(inputs, tmp_path):
    report = dsl.Metrics(uri=str(tmp_path / "report.json"))
    examples = dsl.Dataset(uri=str(tmp_path / "examples"))
    artifacts = {
        name: (dsl.Model if name in ("model_config", "ft_result") else dsl.Dataset)(uri=str(path))
        for name, path in inputs.items()
    }
    asked = Question([{"role": "user", "content": "Which number?"}], "7")
    questions.write(Path(inputs["val_sft"]), [asked])
    card.python_func(**artifacts, eval_report=report, eval_page=dsl.HTML(uri=str(tmp_path / "page.html")),
                     eval_examples=examples, max_new_tokens=3, settings={"generate_samples": 2.0})  # fmt: skip
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["metrics"]["base_loss"] == report.metadata["base_loss"]
    assert len(content["samples"]) == 2
    assert questions.from_report(report.path) == [asked]
    figures = [name for name in report.metadata if name in content["metrics"]]
    assert figures == sorted(figures) and "tuned_chrf" in figures and "tuned_chrf_ci_low" not in figures
    assert report.metadata["dtype"] == "float32"
    assert pq.read_table(tmp_path / "examples").num_rows == 12
    assert examples.metadata["content_hash"].startswith("sha256:")
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page and "http" not in page
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Metrics", "Difference by row and slice", "Answers (2)"]
