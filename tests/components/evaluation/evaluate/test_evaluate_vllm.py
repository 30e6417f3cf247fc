"""Answers of the real vLLM, and when transformers has to write them instead."""

import json
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from llm_finetune.components.evaluation.evaluate import engine, models, vllm_child
from llm_finetune.components.evaluation.evaluate.generation import Assignment, Decoding
from llm_finetune.components.evaluation.evaluate.rows import Prompt
from llm_finetune.components.shared.errors import UserError

CARD = """
import sys
from pathlib import Path
from llm_finetune.components.evaluation.evaluate import step
from llm_finetune.components.shared.card import card
names = ("model_config", "ft_result", "val_tokens", "val_sft", "eval_examples", "eval_page")
with card():
    step.evaluate(**dict(zip(names, sys.argv[1:])), settings=step.Settings(generation_engine="vllm", few_shot=0))
"""


def started() -> list[psutil.Process]:
    """Returns the processes that run vLLM for this test process, or did for one that is gone."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if vllm_child.__file__ in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


@pytest.mark.soak
def test_vllm_answers_as_transformers_does(servable, evaluated, tmp_path):
    settings = servable | dict(max_new_tokens=16, few_shot=2, temperature=0.9)
    by_vllm = evaluated(**settings, generation_engine="vllm")
    page = (tmp_path / "page.html").read_text()
    by_transformers = evaluated(**settings, generation_engine="transformers")
    for name in ("base", "base_few_shot", "tuned"):
        own = [sample[name] for sample in by_vllm.samples]
        assert own == [sample[name] for sample in by_transformers.samples]
        assert {answer["stopped"] for answer in own} == {True, False}
    sampled = [sample["tuned_sampled"] for sample in by_vllm.samples]
    assert sampled != [sample["tuned"] for sample in by_vllm.samples]
    assert all(1 <= answer["tokens"] <= 16 for answer in sampled)
    assert by_vllm.metrics["tuned_loss"] == by_transformers.metrics["tuned_loss"]
    assert by_vllm.writer.startswith("vLLM 0.") and f"Written by {by_vllm.writer}." in page
    assert by_vllm.notes == []
    assert "vllm" not in sys.modules


def test_vllm_that_dies_leaves_the_answers_to_transformers_and_says_why(inputs, evaluated, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "missing_gpu", lambda without_gpu: "")  # as on a machine with a GPU
    config = shutil.copytree(inputs["model_config"], tmp_path / "base") / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "UnheardOfForCausalLM"))
    settings = dict(max_new_tokens=3, generate_samples=3, model_config=tmp_path / "base")
    found = evaluated(**settings)
    assert found.samples == evaluated(**settings, generation_engine="transformers").samples
    assert found.notes[0].startswith("vLLM could not answer the prompts, so transformers did, more slowly: ")
    assert "UnheardOfForCausalLM" in found.notes[0] and not found.problems
    assert found.writer.startswith("transformers (vLLM failed: ")


@pytest.mark.soak
def test_vllm_that_was_asked_for_and_dies_is_a_mistake_with_the_end_of_its_log(evaluated):
    # This base has heads of 16 values, which vLLM on a CPU has no attention for.
    with pytest.raises(
        UserError, match=r"(?s)generation_engine = 'vllm': .*The end of its log:\n.*Unsupported CPU attention"
    ):
        evaluated(max_new_tokens=3, generate_samples=3, generation_engine="vllm")


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_card_that_is_stopped_leaves_no_vllm_behind(servable, tmp_path, number):
    places = [str(servable[name]) for name in ("model_config", "ft_result", "val_tokens", "val_sft")]
    command = [sys.executable, "-c", CARD, *places, str(tmp_path / "examples"), str(tmp_path / "page.html")]
    card = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while not started() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert started() and card.poll() is None
    card.send_signal(number)
    assert card.wait(timeout=30) == (143 if number == signal.SIGTERM else -number)
    deadline = time.monotonic() + 20
    while started() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not started() and not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("adapter", "base", "tokens", "reason"),
    [
        ({"use_dora": True}, {}, 9, "vLLM can't serve the adapter, for it is a DoRA adapter"),
        ({"modules_to_save": ["lm_head"]}, {}, 9, "for it trains lm_head in full"),
        ({"init_lora_weights": "pissa"}, {}, 9, "for its initial values (pissa) change the base"),
        ({"r": 513}, {}, 9, "for its rank 513 is above 512"),
        ({}, {"quantization_config": {"quant_method": "fp8"}}, 9, "the base is quantised"),
        ({}, {}, 1024, "a prompt and its answer may take 1025 tokens, and the model's context is 1024"),
        ({}, {}, 1023, ""),
    ],
)
def test_what_vllm_would_not_answer_alike_is_left_to_transformers(servable, tmp_path, adapter, base, tokens, reason):
    folders = {"base": servable["model_config"], "ft": servable["ft_result"]}
    for (name, folder), file, changes in zip(
        folders.items(), ("config.json", "adapter_config.json"), (base, adapter), strict=True
    ):
        path = shutil.copytree(folder, tmp_path / name) / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    described = models.describe(tmp_path / "base", tmp_path / "ft", load_in_4bit=False)
    assigned = {"base": Assignment([Prompt(0, [5], "")], Decoding(tokens, [2]), tuned=False)}
    found = engine.obstacle(described, assigned, without_gpu=True)
    assert reason in found and bool(reason) == bool(found)


def test_without_a_gpu_transformers_answers_unless_vllm_is_asked_for(evaluated, tmp_path):
    found = evaluated(max_new_tokens=2, generate_samples=2, few_shot=0)
    assert found.writer == "transformers (the installed vLLM is a build for CPUs)"
    assert f"Written by {found.writer}." in (tmp_path / "page.html").read_text()
    assert not found.notes


def test_vllm_that_is_not_installed_and_was_asked_for_is_a_mistake(evaluated, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)  # Python's own mark of a module that is not there
    with pytest.raises(
        UserError, match=r"generation_engine = 'vllm': vLLM is not installed\. Set it to auto or transf"
    ):
        evaluated(generation_engine="vllm")
    found = evaluated(max_new_tokens=2, generate_samples=2, few_shot=0)
    assert found.writer == "transformers (vLLM is not installed)"
