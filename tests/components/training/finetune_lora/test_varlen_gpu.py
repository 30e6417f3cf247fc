"""What only a GPU can show: variable-length attention gives every document the loss and gradient it has alone."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model
from transformers import AutoModelForCausalLM

from llm_finetune.components.shared.modeling.losses import completion_nll, pad_rows
from llm_finetune.components.training.finetune_lora.fused import (
    disable_input_casts,
    fuse_adapters,
    fuse_layers,
    fused_layers_obstacle,
)
from llm_finetune.components.training.finetune_lora.varlen import register_varlen, varlen_obstacle

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture
def folder(tmp_path):
    return tiny_model(tmp_path / "base", layers=2, hidden=256, head=64)


def documents() -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in (5, 17, 64, 128, 33, 200, 7, 90):
        ids = torch.randint(4, 300, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (length // 3) + ids[length // 3 :]})
    return rows


def build(folder, attention, dtype):
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention, device_map="cuda")
    model = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator("cuda").manual_seed(len(name)))
    return model


def flat(rows) -> dict:
    """The batch that TRL's padding-free collator makes."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(rows)
    return {name: value.cuda() if hasattr(value, "cuda") else value for name, value in batch.items()}


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def losses(model, rows, attention: str) -> torch.Tensor:
    """Summed loss of each document: of one flattened row, or of a padded batch."""
    if attention != "varlen":
        return completion_nll(model, pad_rows(rows, "cuda"))[0]
    batch = flat(rows)
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}, use_cache=False).logits[0]
    nll = torch.nn.functional.cross_entropy(
        logits[:-1].float(), batch["labels"][0, 1:], ignore_index=-100, reduction="none"
    )
    return torch.stack(
        [
            part.sum()
            for part in nll.split([len(row["input_ids"]) for row in rows[:-1]] + [len(rows[-1]["input_ids"]) - 1])
        ]
    )


def gradients(model, rows, attention: str) -> torch.Tensor:
    with torch.autocast("cuda", torch.bfloat16, enabled=next(model.parameters()).dtype == torch.bfloat16):
        losses(model, rows, attention).sum().backward()
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("fused", [False, True])
def test_each_document_has_the_loss_and_gradient_that_it_has_alone(folder, fused):
    register_varlen()
    rows = documents()
    reference_model = build(folder, "sdpa", torch.float32)
    with torch.no_grad():
        reference = losses(reference_model, rows, "sdpa")
        alone = torch.cat([losses(reference_model, [row], "sdpa") for row in rows])
    assert torch.allclose(reference, alone, rtol=1e-5)
    model = build(folder, "varlen", torch.bfloat16)
    assert varlen_obstacle(model.config, bfloat16=True) == ""
    if fused:
        if obstacle := fused_layers_obstacle(model.config.model_type):
            pytest.skip(obstacle)
        fuse_layers(model)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        found = losses(model, rows, "varlen")
        swapped = losses(model, rows[::-1], "varlen").flip(0)
    assert torch.allclose(found, reference, rtol=5e-3)
    assert torch.allclose(found, swapped, rtol=2e-4)
    exact = gradients(reference_model, rows, "sdpa")
    padded_rows = gradients(build(folder, "sdpa", torch.bfloat16), rows, "sdpa")
    got = gradients(model, rows, "varlen")
    assert cosine(got, exact) > max(0.998, cosine(padded_rows, exact) - 2e-4)  # as near as bfloat16 comes


def test_gradients_are_the_same_bits_without_the_adapters_input_casts(folder):
    register_varlen()
    plain, spared = (build(folder, "varlen", torch.bfloat16) for _ in range(2))
    disable_input_casts(spared)
    assert torch.equal(gradients(plain, documents(), "varlen"), gradients(spared, documents(), "varlen"))


def test_a_fused_adapter_has_the_output_and_gradients_of_pefts(folder):
    register_varlen()
    plain, fused = (build(folder, "varlen", torch.bfloat16) for _ in range(2))
    assert fuse_adapters(fused) == 14
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        assert torch.allclose(losses(plain, documents(), "varlen"), losses(fused, documents(), "varlen"), rtol=2e-3)
    exact = gradients(build(folder, "sdpa", torch.float32), documents(), "sdpa")
    theirs, own = (gradients(model, documents(), "varlen") for model in (plain, fused))
    assert cosine(own, exact) > cosine(theirs, exact) - 2e-4
