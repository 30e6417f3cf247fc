"""Merge & Export: the merged folder answers as the adapter did, and holds all a server needs."""

import copy
import inspect
import json
import stat
from pathlib import Path

import pytest
import torch
from kfp import dsl
from merge_export_adapter import (  # noqa: F401
    BASE,
    TRAINING,
    export,
    fixture_adapter,
    fixture_base,
    fixture_one_thread,
    fixture_trained,
    make_adapter,
)
from peft import PeftModel
from safetensors.torch import load_file
from tiny import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from llm_finetune.components.serving.merge_export import component, merge, parity, step
from llm_finetune.components.shared.files import content_hash


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


def test_a_client_can_write_no_token_that_the_model_has_no_embedding_for(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>", "<|pad|>"]})
    tokenizer.add_tokens(["<plain>"])
    tokenizer.save_pretrained(adapter)
    text = "<|im_start|>a<image><|pad|><plain>[PAD]<|im_end|>"
    assert max(tokenizer(text)["input_ids"]) == 401
    export(base, adapter, tmp_path)
    served = AutoTokenizer.from_pretrained(tmp_path / "merged")
    ids = served(text)["input_ids"]
    assert max(ids) < 400 and (ids[0], ids[-1], len(served)) == (1, 2, 400)
    assert served.decode(ids) == text and served.all_special_tokens.count("<|pad|>") == 1


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
    from llm_finetune.components.serving.merge_export.layout import add_legacy_config_keys

    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    LlamaForCausalLM(LlamaConfig(vocab_size=16, rope_parameters=rope, **shape)).save_pretrained(tmp_path)
    before = LlamaConfig.from_pretrained(tmp_path).rope_parameters
    add_legacy_config_keys(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["rope_theta"] == 500000.0
    assert written["rope_scaling"] == {name: value for name, value in rope.items() if name != "rope_theta"}
    assert LlamaConfig.from_pretrained(tmp_path).rope_parameters == before


def test_the_summary_shows_what_the_card_promises(base: Path, adapter: Path, tmp_path: Path) -> None:
    export(base, adapter, tmp_path)
    summary = (tmp_path / "summary.md").read_text()
    for row in ("base model | org/base", "save\\_format | safetensors", "pushed\\_to\\_hub | no", "hub\\_repo | none",
                "merged into | original weights"):  # fmt: skip
        assert f"| {row} |" in summary


def test_an_adapter_trained_in_4_bit_goes_into_the_dequantised_base(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "ft_result", load_in_4bit=True)
    facts = export(base, adapter, tmp_path, dtype="float32")
    assert facts.merged_into == "weights dequantized from NF4"
    merged, original = (load_file(folder / "model.safetensors") for folder in (tmp_path / "merged", base))
    name = "model.layers.0.self_attn.k_proj.weight"  # no adapter on it: the dequantized weights themselves
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


def test_the_adapter_can_be_kept(base: Path, adapter: Path, tmp_path: Path) -> None:
    export(base, adapter, tmp_path, keep_adapter=True)
    kept = tmp_path / "merged" / "adapter"
    assert (kept / "adapter_model.safetensors").read_bytes() == (adapter / "adapter_model.safetensors").read_bytes()
    config = json.loads((kept / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/base", "abc")


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
