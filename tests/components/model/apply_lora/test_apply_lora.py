"""Apply LoRA: names checked against the real architecture, parameters counted, memory estimated."""

import inspect
import json
import math
from pathlib import Path

import pytest
from kfp import dsl
from tiny import tiny_model
from tiny_architectures import tiny_architecture

from llm_finetune.components.model.apply_lora import component, step
from llm_finetune.components.model.apply_lora.settings import INITS
from llm_finetune.components.shared.errors import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tied") / "model", tied=True)


def apply(model: Path, tmp_path: Path, load_in_4bit: bool = False, **settings: object) -> step.LoraFacts:
    chosen = step.Settings(**settings)
    return step.apply_lora(model, tmp_path / "lora", tmp_path / "summary.md", chosen, load_in_4bit)


def written(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "lora" / "adapter_config.json").read_text())


def test_settings_are_the_component_s_parameters() -> None:
    signature = inspect.signature(component.apply_lora.python_func).parameters
    defaults = {name: signature[name].default for name in step.Settings.model_fields}
    assert defaults == step.Settings().model_dump()


def test_the_defaults(model: Path, tmp_path: Path) -> None:
    facts = apply(model, tmp_path)
    # q and o: 64 -> 64, k and v: 64 -> 32; two layers
    expected = 2 * 16 * (2 * (64 + 64) + 2 * (64 + 32))
    assert facts.trainable_parameters == expected
    assert facts.total_parameters == 125248 + expected
    assert facts.trainable_share == expected / (125248 + expected)
    assert (facts.lora_rank, facts.fits, facts.serves_as_adapter) == (16, "unknown", True)
    config = written(tmp_path)
    assert sorted(config["target_modules"]) == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (16, 32, 0.05)
    assert config["task_type"] == "CAUSAL_LM"
    assert config["init_lora_weights"] is True


def test_the_summary_shows_what_the_card_promises(model: Path, tmp_path: Path) -> None:
    apply(model, tmp_path, target_modules="q_proj,v_proj", gpu_memory_gib=80)
    summary = (tmp_path / "summary.md").read_text()
    for row in (
        "lora\\_rank | 16",
        "target\\_modules | q\\_proj, v\\_proj",
        "trainable parameters | 7,168 of 132,416",
        "share | 5.413%",
        "fits | yes",
    ):
        assert f"| {row} |" in summary
    assert "4,096 tokens in a micro-batch, gradient checkpointing off, frozen weights in bfloat16" in summary


@pytest.mark.parametrize(
    ("family", "reads"),
    [("gemma2", "every pair of the 1,024 tokens in a row"), ("bloom", "every pair of the 256 tokens in a row")],
)
def test_attention_that_keeps_its_scores_is_in_the_estimate(tmp_path: Path, family: str, reads: str) -> None:
    """Rows of gemma2 are packed and flattened; bloom, whose documents would see each other, has them padded."""
    folder = tiny_architecture(tmp_path / family, family)
    targets = "query_key_value" if family == "bloom" else "q_proj"
    apply(folder, tmp_path, load_in_4bit=True, max_length=256, batch_size=4, target_modules=targets)
    summary = (tmp_path / "summary.md").read_text()
    assert f"adapter and optimizer in bfloat16, eager attention, which saves a score for {reads}." in summary


def test_the_adapter_that_is_trained_has_the_parameters_that_were_counted(model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    facts = apply(model, tmp_path, target_modules="all-linear", use_dora=True, modules_to_save="lm_head", r=4)
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig.from_pretrained(tmp_path / "lora"))
    assert wrapped.get_nb_trainable_parameters() == (facts.trainable_parameters, facts.total_parameters)
    assert facts.target_modules == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert facts.serves_as_adapter is False
    assert "merge it" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"target_modules": "q_prj,v_proj"},
            r"'q_prj' matches no module of LlamaForCausalLM; did you mean 'q_proj'\? \(linear modules: q_proj, k_proj,",
        ),
        ({"target_modules": "c_attn"}, r"'c_attn' matches no module .*down_proj; or all-linear\)"),
        ({"target_modules": "mlp"}, r"'mlp' is a LlamaMLP.* linear modules in it are gate_proj, up_proj, down_proj"),
        ({"target_modules": "input_layernorm"}, r"'input_layernorm' is a LlamaRMSNorm, which LoRA does not support$"),
        ({"target_modules": "lm_head"}, r"'lm_head' is the head.*modules_to_save"),
        ({"modules_to_save": "head"}, r"modules_to_save: 'head' matches no module"),
        ({"modules_to_save": "q_proj"}, r"in target_modules and in modules_to_save"),
    ],
)
def test_names_that_do_not_fit_the_architecture(model: Path, tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        apply(model, tmp_path, **settings)
    assert not (tmp_path / "lora").exists()


@pytest.mark.parametrize("settings", [{"target_modules": "embed_tokens"}, {"modules_to_save": "lm_head"}])
def test_tied_weights_are_not_trained_apart(tied: Path, model: Path, tmp_path: Path, settings: dict) -> None:
    with pytest.raises(UserError, match="one tensor"):
        apply(tied, tmp_path, **settings)
    apply(model, tmp_path, **settings)


def test_an_unknown_architecture(model: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    config = json.loads((model / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps({**config, "model_type": "nonesuch"}))
    with pytest.raises(UserError, match="nonesuch"):
        apply(odd, tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"init": "pissa_niter_16"}, "differs when the adapter is loaded again: use pissa"),
        ({"init": "loftq"}, "full-precision weights on a GPU"),
        ({"init": "eva"}, "pass over the data"),
        ({"init": "corda"}, "pass over the data"),
        ({"init": "gausian"}, "did you mean 'gaussian'"),
        ({"init": "orthogonal", "r": 3}, "even r"),
        ({"target_modules": " , "}, "names no module"),
        ({"r": 0}, "greater than or equal to 1"),
        ({"lora_dropout": 1.0}, "less than 1"),
        ({"gradient_checkpointing": "maybe"}, "'on', 'off' or 'auto'"),
        ({"rank": 8}, "unknown setting 'rank'"),
    ],
)
def test_impossible_settings(given: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        step.Settings.of({"settings": given})


@pytest.mark.parametrize("setting", ["target_modules", "modules_to_save"])
def test_names_of_modules_are_text_or_a_list(setting: str) -> None:
    listed = step.Settings.of({"settings": {setting: ["q_proj", "v_proj"]}})
    assert getattr(listed, setting) == "q_proj,v_proj"
    assert listed == step.Settings.of({"settings": {setting: "q_proj,v_proj"}})
    with pytest.raises(UserError, match=rf"{setting} = \[1\]: Input should be a valid string"):
        step.Settings.of({"settings": {setting: [1]}})


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_inits_that_change_the_base_are_refused_in_4_bit(model: Path, tmp_path: Path, init: str) -> None:
    with pytest.raises(UserError, match="impossible in 4 bit"):
        apply(model, tmp_path, load_in_4bit=True, init=init)


@pytest.mark.parametrize("init", INITS)
def test_every_init_survives_saving_and_loading(model: Path, tmp_path: Path, init: str) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    apply(model, tmp_path, init=init, r=4)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig.from_pretrained(tmp_path / "lora"))
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight += 0.01
    tuned.eval().save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), tmp_path / "adapter").eval()
    tokens = torch.arange(40)[None]
    assert torch.equal(tuned(tokens).logits, again(tokens).logits)


def test_a_gpu_too_small_is_said_in_the_summary(model: Path, tmp_path: Path) -> None:
    facts = apply(model, tmp_path, gpu_memory_gib=0.1)
    assert facts.fits == "no"
    assert "No setting makes it fit" in (tmp_path / "summary.md").read_text()


def test_the_card(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = dsl.Model(
        uri=str(model), metadata={"content_hash": "sha256:1", "load_in_4bit": False, "model_name": "org/b"}
    )
    lora, summary = dsl.Artifact(uri=str(tmp_path / "lora")), dsl.Markdown(uri=str(tmp_path / "summary.md"))
    arguments = {"model_config": base, "lora_config": lora, "model_summary": summary}
    component.apply_lora.python_func(**arguments, settings={"init": "pissa", "r": 8.0})
    assert lora.metadata["lora_rank"] == 8
    assert lora.metadata["inputs"] == {"model_config": "sha256:1"}
    assert math.isfinite(lora.metadata["estimated_memory_gib"])
    json.dumps(lora.metadata, allow_nan=False)
    with pytest.raises(SystemExit):
        component.apply_lora.python_func(**arguments, target_modules="nope")
    assert capsys.readouterr().err.startswith("error: target_modules: 'nope' matches no module")
