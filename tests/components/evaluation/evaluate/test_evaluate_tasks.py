import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_finetune.components.evaluation.evaluate import harness
from llm_finetune.components.evaluation.evaluate.adapter import load_adapter
from llm_finetune.components.evaluation.evaluate.settings import Settings
from llm_finetune.components.evaluation.quality_gate.rules import parse_rules
from llm_finetune.components.evaluation.quality_gate.step import apply_rules
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.losses import completion_nll, pad_rows

lm_eval = pytest.importorskip("lm_eval")
TASKS = "tests/data/tasks"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


@pytest.fixture(scope="module")
def model(inputs):
    base = AutoModelForCausalLM.from_pretrained(inputs["model_config"], dtype=torch.float32)
    return load_adapter(base, inputs["ft_result"]).eval()


@pytest.fixture(scope="module")
def tokenizer(inputs):
    return AutoTokenizer.from_pretrained(inputs["ft_result"])


def test_a_local_task_is_scored_for_both_models_with_standard_errors(evaluated):
    metrics = evaluated(generate_samples=0, tasks=f"{TASKS}/colours.yaml").metrics
    for model in ("base", "tuned"):
        share = metrics[f"task.colours.{model}"]
        assert share * 8 == pytest.approx(round(share * 8))
        assert share == metrics[f"task.colours.acc.{model}"]
    assert metrics["task.colours.drop"] == pytest.approx(metrics["task.colours.base"] - metrics["task.colours.tuned"])
    errors = [math.sqrt(p * (1 - p) / 7) for p in (metrics["task.colours.base"], metrics["task.colours.tuned"])]
    assert metrics["task.colours.stderr"] == pytest.approx(math.hypot(*errors), abs=1e-6)
    assert apply_rules(parse_rules("task.colours.drop <= 2*stderr"), metrics)[0].passed == (
        metrics["task.colours.drop"] <= 2 * metrics["task.colours.stderr"]
    )


def test_our_loss_is_the_harness_s_rolling_loglikelihood(model, tokenizer):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    texts = ["The quick brown fox jumps over the lazy dog.", "Good morning!", '{"city": "Springfield"}']
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2)
    requests = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
    rolling = lm.loglikelihood_rolling(requests, disable_tqdm=True)
    # The harness lets the first token follow the beginning-of-sequence token, which it does not score.
    documents = [[lm.prefix_token_id, *tokenizer(text)["input_ids"]] for text in texts]
    rows = [{"input_ids": ids, "labels": [-100, *ids[1:]]} for ids in documents]
    with torch.no_grad():
        nll, tokens = completion_nll(model, pad_rows(rows))
    for ours, theirs, count in zip(nll.tolist(), rolling, tokens.tolist(), strict=True):
        assert ours / count == pytest.approx(-theirs / count, abs=1e-4)


def test_memory_that_runs_out_halves_the_batch_and_says_so(model, tokenizer, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    chosen = Settings(task_limit=4)
    loaded = harness.load_tasks(f"{TASKS}/colours.yaml", chosen)
    plain = harness.run_tasks(model, tokenizer, loaded, chosen, [])
    forward = HFLM._model_call

    def small_memory(self, inps, *args, **kwargs):
        if len(inps) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return forward(self, inps, *args, **kwargs)

    monkeypatch.setattr(HFLM, "_model_call", small_memory)
    notes = []
    assert harness.run_tasks(model, tokenizer, loaded, chosen, notes) == pytest.approx(plain)
    assert notes == [
        "tasks: out of memory with a batch size of 16, continuing with 8",
        "tasks: out of memory with a batch size of 8, continuing with 4",
    ]


def test_where_lower_is_better_a_drop_is_a_rise(model, tokenizer):
    loaded = harness.load_tasks(f"{TASKS}/prose.yaml", Settings())
    metrics = harness.run_tasks(model, tokenizer, loaded, Settings(), [])
    assert metrics["task.prose.drop"] == pytest.approx(metrics["task.prose.tuned"] - metrics["task.prose.base"])


def test_an_unknown_task_is_named_with_the_nearest():
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False, include_path=TASKS)
    with pytest.raises(UserError, match=r"has no task 'colors'; did you mean 'colours'\?"):
        harness.load_tasks("colours,colors", Settings(), manager)


def test_a_task_whose_data_is_missing_is_named(tmp_path):
    task = tmp_path / "lost.yaml"
    task.write_text("task: lost\ndataset_path: json\ndataset_kwargs: {data_files: {test: /none.jsonl}}\ntest_split: test\n"
                    "output_type: multiple_choice\ndoc_to_text: q\n")  # fmt: skip
    with pytest.raises(UserError, match="could not be loaded: FileNotFoundError"):
        harness.load_tasks(str(task), Settings())


def test_examples_in_a_task_s_prompts_follow_the_setting():
    def of(**chosen):
        return harness.load_tasks(f"{TASKS}/colours.yaml", Settings(**chosen))["tasks"]["colours"].get_config(
            "num_fewshot"
        )

    assert (of(), of(task_few_shot=3)) == (0, 3)
