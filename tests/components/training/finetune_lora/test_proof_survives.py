"""Every kind of adapter that Apply LoRA offers is, after saving, merging and loading again, the model that was trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny import tiny_model
from token_rows import documents, write
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llm_finetune.components.model.apply_lora import step as apply_lora
from llm_finetune.components.model.apply_lora.settings import INITS
from llm_finetune.components.serving.merge_export import step as merge_export
from llm_finetune.components.training.finetune_lora import step as finetune
from llm_finetune.components.training.finetune_lora import training

VARIANTS: dict[str, dict[str, Any]] = {
    **{f"init {init}": {"init": init} for init in INITS},
    "DoRA": {"use_dora": True},
    "rsLoRA": {"use_rslora": True},
    "DoRA and rsLoRA, all linear": {"use_dora": True, "use_rslora": True, "target_modules": "all-linear"},
    "embedding adapted": {"target_modules": "q_proj,embed_tokens"},
    "head trained": {"modules_to_save": "lm_head"},
    "embedding and head trained": {"modules_to_save": "embed_tokens,lm_head"},
}
IDS = torch.tensor([[5, 9, 301, 17, 44, 2, 77, 130, 8, 250]])


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("world")
    return {
        "base": tiny_model(folder / "base"),
        "tied": tiny_model(folder / "tied", tied=True),
        "train": write(folder / "train", documents(16, seed=1)),
        "packed": write(folder / "packed", documents(16, seed=1), packed=2),
        "val": write(folder / "val", documents(6, seed=2)),
    }


@pytest.fixture
def live(monkeypatch) -> dict[str, Any]:
    """Keeps the model that was trained, to compare with."""
    kept: dict[str, Any] = {}
    original = training.write_result

    def keeping(ft_result: Path, model: Any, *others: Any) -> None:
        kept["model"] = model
        original(ft_result, model, *others)

    monkeypatch.setattr(training, "write_result", keeping)
    return kept


def tuned(world: dict[str, Path], out: Path, base: str = "base", rows: str = "train", **variant: Any) -> Path:
    apply_lora.apply_lora(
        world[base], out / "lora", out / "lora.md", apply_lora.Settings(r=4, lora_dropout=0.0, **variant),
        load_in_4bit=False,
    )  # fmt: skip
    settings = finetune.Settings(num_epochs=1, learning_rate=2e-2, dtype="float32", evaluate_first=False)
    finetune.finetune_lora(world[base], out / "lora", world[rows], world["val"], out / "ft", out / "c.html", settings)
    return out / "ft"


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(ids).logits


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_saved_merged_and_loaded_it_is_the_model_that_was_trained(world, live, tmp_path, variant):
    adapter = tuned(world, tmp_path, **variant)
    trained = logits(live["model"])
    assert (trained - logits(plain(world["base"]))).abs().max() > 0.1  # something was learned
    assert torch.allclose(logits(PeftModel.from_pretrained(plain(world["base"]), adapter)), trained, atol=1e-5)
    facts = merge_export.merge_export(
        world["base"], adapter, tmp_path / "merged", tmp_path / "m.md", merge_export.Settings(dtype="float32")
    )
    assert torch.allclose(logits(plain(tmp_path / "merged")), trained, atol=1e-4)
    assert facts.agreement == 1.0


def test_tied_weights_stay_one_tensor_through_the_chain(world, live, tmp_path):
    adapter = tuned(world, tmp_path, base="tied", target_modules="all-linear")
    merge_export.merge_export(
        world["tied"], adapter, tmp_path / "merged", tmp_path / "m.md", merge_export.Settings(dtype="float32")
    )
    merged = plain(tmp_path / "merged")
    assert torch.allclose(logits(merged), logits(live["model"]), atol=1e-4)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert "lm_head.weight" not in load_file(tmp_path / "merged" / "model.safetensors")


def test_a_trained_head_learns_the_same_on_packed_rows(world, live, tmp_path):
    """There the loss goes through TRL's fused head, which must use the trained copy of the weights."""
    adapter = tuned(world, tmp_path, rows="packed", modules_to_save="lm_head")
    stored = load_file(adapter / "adapter_model.safetensors")
    head = next(value for name, value in stored.items() if "lm_head" in name)
    assert not torch.allclose(head, plain(world["base"]).lm_head.weight, atol=1e-3)
    again = PeftModel.from_pretrained(plain(world["base"]), adapter)
    assert torch.allclose(logits(again), logits(live["model"]), atol=1e-5)


def test_tokens_added_to_the_tokenizer_are_learned_and_served(world, live, tmp_path):
    """New tokens take rows that the embedding has in reserve, and their rows are trained."""
    base = tiny_model(tmp_path / "roomy", vocabulary=400)
    config = AutoConfig.from_pretrained(base)
    model = plain(base)
    model.resize_token_embeddings(408, mean_resizing=False)
    model.save_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<street>", "<city>"], special_tokens=True)
    street, city = tokenizer.convert_tokens_to_ids(["<street>", "<city>"])
    assert (config.vocab_size, len(tokenizer)) == (400, street + 2)
    rows = [
        {"input_ids": [*row["input_ids"][:-1], street, city, 2], "labels": [*row["labels"][:-1], street, city, 2], "row": i}
        for i, row in enumerate(documents(16, seed=1))
    ]  # fmt: skip
    own = {"base": base, "train": write(tmp_path / "train", rows), "val": write(tmp_path / "val", rows[:6])}
    for split in ("train", "val"):
        tokenizer.save_pretrained(own[split] / "tokenizer")
    adapter = tuned(own, tmp_path, modules_to_save="embed_tokens,lm_head")
    merge_export.merge_export(
        base, adapter, tmp_path / "merged", tmp_path / "m.md", merge_export.Settings(dtype="float32")
    )
    served, merged = AutoTokenizer.from_pretrained(tmp_path / "merged"), plain(tmp_path / "merged")
    assert served("<street>x<city>", add_special_tokens=False)["input_ids"][::2] == [street, city]
    assert not torch.equal(merged.lm_head.weight[street], model.lm_head.weight[street])
    ids = torch.tensor([[7, street, city, 9]])
    assert torch.allclose(logits(merged, ids), logits(live["model"], ids), atol=1e-4)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["vocab_size"] == 408


def test_an_initialisation_from_the_weights_survives_a_resume(world, tmp_path):
    apply_lora.apply_lora(
        world["base"], tmp_path / "lora", tmp_path / "l.md", apply_lora.Settings(r=4, init="pissa"), load_in_4bit=False
    )
    stored = []
    for name in ("whole", "resumed"):
        settings = finetune.Settings(
            num_epochs=1, learning_rate=2e-2, dtype="float32", evaluate_first=False, checkpoint_steps=2,
            checkpoint_folder=str(tmp_path / name),
        )  # fmt: skip
        arguments = (world["base"], tmp_path / "lora", world["train"], world["val"])
        finetune.finetune_lora(*arguments, tmp_path / "ft", tmp_path / "c.html", settings)
        if name == "resumed":  # once more from the second last checkpoint, as after a torn last one
            weights = tmp_path / name / "checkpoint-4" / "adapter_model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-8])
            facts = finetune.finetune_lora(*arguments, tmp_path / "ft", tmp_path / "c.html", settings)
            assert facts.resumed_from_step == 2
        stored.append((tmp_path / "ft" / "adapter_model.safetensors").read_bytes())
    assert stored[0] == stored[1]
