"""Merge & Export: the merged folder answers as the adapter did, holds all a server needs, and gets where it shall."""

import copy
import inspect
import json
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from kfp import dsl
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from llm_finetune.components.serving.merge_export import component, merge, parity, shards, step
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import content_hash

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


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from a second thread, and on a busy machine wait for it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_model(tmp_path_factory.mktemp("base") / "model", dtype="bfloat16")
    (folder / "LICENSE").write_text("Apache License")
    return folder


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(base, tmp_path_factory.mktemp("adapter") / "ft_result")


@pytest.fixture
def adapter(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "ft_result")


def export(base: Path, adapter: Path, tmp_path: Path, **settings: object) -> step.MergeFacts:
    chosen = step.Settings(**settings)
    return step.merge_export(
        base, adapter, tmp_path / "merged", tmp_path / "summary.md", chosen, BASE, TRAINING, {"tuned_loss": 0.5}
    )


def test_settings_are_the_component_s_parameters() -> None:
    signature = inspect.signature(component.merge_export.python_func).parameters
    defaults = {name: signature[name].default for name in step.Settings.model_fields}
    assert defaults == step.Settings().model_dump()


def test_the_merged_model_answers_as_the_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    facts = export(base, adapter, tmp_path, dtype="float32")
    rows = parity.parity_rows(adapter)
    reference = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter
    ).eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", use_safetensors=True).eval()
    untouched = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    ids = torch.tensor([rows[0]["input_ids"]])
    with torch.no_grad():
        assert torch.allclose(reference(ids).logits, merged(ids).logits, atol=1e-4)
        assert not torch.allclose(untouched(ids).logits, merged(ids).logits, atol=1e-1)
    assert (facts.parity_rows, facts.agreement, facts.dtype) == (16, 1.0, "float32")
    assert facts.parity_tokens == sum(len(row["labels"]) - 8 for row in rows)
    assert abs(facts.loss_difference) < 1e-5
    assert facts.max_logit_difference < 1e-4
    by_hand = [reference(torch.tensor([row["input_ids"]])).logits[0, 7:-1] for row in rows]
    targets = torch.cat([torch.tensor(row["input_ids"][8:]) for row in rows])
    loss = torch.nn.functional.cross_entropy(torch.cat(by_hand), targets)
    assert facts.adapter_loss == pytest.approx(float(loss), rel=1e-5)


def test_the_base_s_own_precision_is_kept_and_costs_little(base: Path, adapter: Path, tmp_path: Path) -> None:
    facts = export(base, adapter, tmp_path)
    assert facts.dtype == "bfloat16"
    assert {value.dtype for value in load_file(tmp_path / "merged" / "model.safetensors").values()} == {torch.bfloat16}
    assert abs(facts.loss_difference) < 0.01
    assert facts.agreement > 0.95


def test_the_folder_holds_what_a_server_needs(base: Path, adapter: Path, tmp_path: Path) -> None:
    export(base, adapter, tmp_path)
    merged = tmp_path / "merged"
    assert sorted(file.name for file in merged.iterdir()) == [
        "LICENSE", "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    config = json.loads((merged / "config.json").read_text())
    assert (config["rope_theta"], config["torch_dtype"], config["dtype"]) == (10000.0, "bfloat16", "bfloat16")
    assert (config["eos_token_id"], config["pad_token_id"]) == ([2], 3)
    assert "quantization_config" not in config
    assert str(base) not in (merged / "config.json").read_text()
    tokenizer = json.loads((merged / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"backend", "is_local", "local_files_only"} & set(tokenizer)
    messages = [{"role": "user", "content": "hi"}]
    ours, theirs = AutoTokenizer.from_pretrained(merged), AutoTokenizer.from_pretrained(adapter)
    assert ours.apply_chat_template(messages, tokenize=False) == theirs.apply_chat_template(messages, tokenize=False)
    assert GenerationConfig.from_pretrained(merged).eos_token_id == [2]
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o644 for file in merged.iterdir())


def test_scaled_rotary_positions_under_their_old_name(tmp_path: Path) -> None:
    from llm_finetune.components.serving.merge_export.layout import make_config_readable

    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    LlamaForCausalLM(LlamaConfig(vocab_size=16, rope_parameters=rope, **shape)).save_pretrained(tmp_path)
    before = LlamaConfig.from_pretrained(tmp_path).rope_parameters
    make_config_readable(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["rope_theta"] == 500000.0
    assert written["rope_scaling"] == {name: value for name, value in rope.items() if name != "rope_theta"}
    assert LlamaConfig.from_pretrained(tmp_path).rope_parameters == before


def test_the_model_card(base: Path, adapter: Path, tmp_path: Path) -> None:
    export(base, adapter, tmp_path)
    card = ModelCard.load(tmp_path / "merged" / "README.md")
    assert (card.data.base_model, card.data.license) == ("org/base", "apache-2.0")
    for line in (
        "# base, fine-tuned",
        "[org/base](https://huggingface.co/org/base) at revision `abc`, fine-tuned with\nLoRA on completions",
        "| modules | down_proj, q_proj, v_proj |",
        "| val\\_loss | 1.25 |",
        "| tuned\\_loss | 0.5 |",
        "| parity\\_rows | 16 |",
        "| adapter | sha256:a |",
        "| train\\_tokens | sha256:t |",
        "| seed | 7 |",
    ):
        assert line in card.content


def test_the_model_card_repeats_the_run(base: Path, adapter: Path, tmp_path: Path) -> None:
    plan = {"parameters": {"learning_rate": 1e-3, "template": "{instruction}\n\n{output}"}, "evaluate": {}}
    facts = BASE | {"licence": "cc-by-nc-4.0"}
    arguments = (base, adapter, tmp_path / "merged", tmp_path / "summary.md", step.Settings(), facts, TRAINING)
    step.merge_export(*arguments, {"tuned_loss": 0.5}, plan=plan)
    card = ModelCard.load(tmp_path / "merged" / "README.md")
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)\n```", card.content, re.DOTALL)[1])
    assert recipe == {
        "parameters": plan["parameters"],
        "load_model": {"revision": "abc"},
        "load_dataset": {"hf_revision": "0" * 40},
    }
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("loss", 0.5, "org/rows")
    assert "**The licence of the base model (cc-by-nc-4.0) forbids commercial use**" in card.content
    assert "**The licence of the data isn't known**" in card.content
    assert "| rows | 1,200 |" in card.content


def test_the_model_card_of_a_base_in_a_folder(base: Path, adapter: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(base, tmp_path / "base")
    card = tmp_path / "merged" / "README.md"
    facts = {**BASE, "model_name": str(copied)}
    arguments = (copied, adapter, tmp_path / "merged", tmp_path / "summary.md", step.Settings(), facts)
    step.merge_export(*arguments)
    assert ModelCard.load(card).data.base_model is None
    assert "# base, fine-tuned\n\nbase at revision `abc`" in card.read_text()
    assert str(tmp_path) not in card.read_text()
    (copied / "README.md").write_text("---\nbase_model: org/original\n---\n")
    step.merge_export(*arguments)
    assert ModelCard.load(card).data.base_model == "org/original"


def test_the_summary_shows_what_the_card_promises(base: Path, adapter: Path, tmp_path: Path) -> None:
    export(base, adapter, tmp_path)
    summary = (tmp_path / "summary.md").read_text()
    for row in ("base model | org/base", "save\\_format | safetensors", "pushed\\_to\\_hub | no", "hub\\_repo | none",
                "merged into | original weights"):  # fmt: skip
        assert f"| {row} |" in summary


def test_an_adapter_trained_in_4_bit_goes_into_the_dequantised_base(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "ft_result", load_in_4bit=True)
    facts = export(base, adapter, tmp_path, dtype="float32")
    assert facts.merged_into == "weights dequantised from NF4"
    merged, original = (load_file(folder / "model.safetensors") for folder in (tmp_path / "merged", base))
    name = "model.layers.0.self_attn.k_proj.weight"  # no adapter on it: the dequantised weights themselves
    blocks = merged[name].reshape(-1, 64)
    assert all(len(block.unique()) <= 16 for block in blocks)
    assert not torch.equal(merged[name], original[name].float())
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    plain = make_adapter(base, tmp_path / "plain", load_in_4bit=False)
    export(base, plain, tmp_path, dtype="float32")
    assert torch.equal(load_file(tmp_path / "merged" / "model.safetensors")[name], original[name].float())


@pytest.mark.parametrize(
    "lora",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"init_lora_weights": "pissa"},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": "all-linear"},
    ],
)
def test_every_variant_merges(base: Path, tmp_path: Path, lora: dict) -> None:
    facts = export(base, make_adapter(base, tmp_path / "ft_result", **lora), tmp_path, dtype="float32")
    assert facts.agreement == 1.0
    assert facts.max_logit_difference < 1e-3


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", tied=True)
    export(base, make_adapter(base, tmp_path / "ft_result"), tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "merged" / "model.safetensors")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").config.tie_word_embeddings


def test_large_models_are_sharded(base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "SHARD_SIZE", 100_000)
    facts = export(base, adapter, tmp_path)
    files = list((tmp_path / "merged").glob("model-*.safetensors"))
    assert len(files) > 2
    assert facts.size_bytes == sum(file.stat().st_size for file in files)
    assert facts.agreement > 0.95


@pytest.mark.parametrize("shard_size", [merge.SHARD_SIZE, 100_000])
def test_pt_holds_the_same_weights(
    base: Path,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shard_size: int,
) -> None:
    monkeypatch.setattr(merge, "SHARD_SIZE", shard_size)
    facts = export(base, adapter, tmp_path, save_format="pt")
    assert "pickle" in capsys.readouterr().out
    assert "pickle" in (tmp_path / "summary.md").read_text()
    merged = tmp_path / "merged"
    assert not list(merged.glob("*.safetensors*"))
    files = sorted(merged.glob("pytorch_model*.bin"))
    assert facts.size_bytes == sum(file.stat().st_size for file in files)
    stored = {name: value for file in files for name, value in torch.load(file, weights_only=True).items()}
    export(base, adapter, tmp_path / "other")
    expected = {}
    for file in (tmp_path / "other" / "merged").glob("*.safetensors"):
        expected |= load_file(file)
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], expected[name]) for name in expected)
    if shard_size == 100_000:
        index = json.loads((merged / "pytorch_model.bin.index.json").read_text())["weight_map"]
        assert set(index) == set(stored)
        assert set(index.values()) == {file.name for file in files}


def test_a_merge_that_changes_the_answers_is_refused(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The adapter is lost on the way into the files.
    monkeypatch.setattr(shards, "_owners", lambda _: {})
    with pytest.raises(
        UserError, match=r"isn't the one that was trained: on 16 validation rows .* loss \d+\.\d{4}, the"
    ):
        export(base, adapter, tmp_path)
    assert not (tmp_path / "merged").exists()
    assert not (tmp_path / "merged.partial").exists()


def test_the_tolerances_are_settings(base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"at most 1e-07 apart"):
        export(base, adapter, tmp_path, loss_tolerance=1e-7)


def test_figures_that_are_not_finite_are_refused() -> None:
    figures = parity.Parity(1, 10, 1.0, float("nan"), float("nan"), 1.0, float("nan"))
    with pytest.raises(UserError, match="nan"):
        parity.refuse_difference(figures, 0.05, 0.95)


def test_an_adapter_with_values_that_are_not_finite(base: Path, adapter: Path, tmp_path: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    next(value for name, value in weights.items() if "lora_B" in name).fill_(float("nan"))
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="holds values that are not finite"):
        export(base, adapter, tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "training.json").unlink(), "no training.json"),
        (lambda folder: (folder / "parity_prompts.json").unlink(), "no parity_prompts.json"),
        (lambda folder: (folder / "parity_prompts.json").write_text("[]"), "no parity_prompts.json"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "no chat template"),
        (lambda folder: (folder / "generation_config.json").unlink(), "never stop"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "no adapter_config.json"),
    ],
)
def test_results_that_lack_something(base: Path, adapter: Path, tmp_path: Path, damage: object, message: str) -> None:
    damage(adapter)
    with pytest.raises(UserError, match=message):
        export(base, adapter, tmp_path)
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_another_model(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not fit the base model"):
        export(tiny_model(tmp_path / "wide", hidden=96), trained, tmp_path)
    with pytest.raises(UserError, match=r"use token 3\d\d, the base model has embeddings for 300"):
        export(tiny_model(tmp_path / "short", vocabulary=300), trained, tmp_path)


def test_the_adapter_can_be_kept(base: Path, adapter: Path, tmp_path: Path) -> None:
    export(base, adapter, tmp_path, keep_adapter=True)
    kept = tmp_path / "merged" / "adapter"
    assert (kept / "adapter_model.safetensors").read_bytes() == (adapter / "adapter_model.safetensors").read_bytes()
    config = json.loads((kept / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/base", "abc")


def test_impossible_settings() -> None:
    with pytest.raises(UserError, match=r"push_to_hub needs hub_repo = owner/name, and it is ''"):
        step.Settings.of({"push_to_hub": True})
    with pytest.raises(UserError, match="save_format = 'gguf'"):
        step.Settings.of({"save_format": "gguf"})


def test_the_card(base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merged = dsl.Model(uri=str(tmp_path / "merged"))
    arguments = {
        "model_config": dsl.Model(uri=str(base), metadata=copy.deepcopy(BASE)),
        "ft_result": dsl.Model(uri=str(adapter), metadata=copy.deepcopy(TRAINING)),
        "merged_model": merged,
        "model_summary": dsl.Markdown(uri=str(tmp_path / "summary.md")),
    }
    report = dsl.Metrics(uri=str(tmp_path / "report"), metadata={"tuned_loss": 0.5, "content_hash": "sha256:e"})
    component.merge_export.python_func(**arguments, eval_report=report)
    assert merged.metadata["content_hash"] == content_hash(tmp_path / "merged")
    assert merged.metadata["inputs"] == {"model_config": "sha256:b", "ft_result": "sha256:a", "eval_report": "sha256:e"}
    assert (merged.metadata["where"], merged.metadata["base_model"]) == (str(tmp_path / "merged"), "org/base")
    json.dumps(merged.metadata, allow_nan=False)
    component.merge_export.python_func(**arguments)  # without an evaluation
    assert set(merged.metadata["inputs"]) == {"model_config", "ft_result"}
    with pytest.raises(SystemExit):
        component.merge_export.python_func(**arguments, dtype="int4")
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: dtype = 'int4'")
