"""The adapter's fused product, on the CPU: exact in float64, and PEFT's own in bfloat16 and in 4 bit."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model

from llm_finetune.components.shared.modeling.causal_lm import load_base
from llm_finetune.components.training.finetune_lora.fused import LoraProduct, disable_input_casts, fuse_adapters


def test_the_product_and_its_gradients_are_exact():
    torch.manual_seed(0)
    x, a, b = (torch.randn(size, dtype=torch.double, requires_grad=True) for size in ((1, 7, 5), (2, 5), (6, 2)))
    base = SimpleNamespace(weight=torch.randn(6, 5, dtype=torch.double), bias=torch.randn(6, dtype=torch.double))
    wanted = x @ base.weight.t() + base.bias + 1.7 * (x @ a.t()) @ b.t()
    assert torch.allclose(LoraProduct.apply(x, base, a, b, 1.7), wanted)
    assert torch.autograd.gradcheck(lambda x, a, b: LoraProduct.apply(x, base, a, b, 1.7), (x, a, b))


def build(folder, nf4: bool, **lora):
    torch.manual_seed(1)
    targets = ["q_proj", "v_proj", "o_proj"]
    config = LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", **lora)
    model = get_peft_model(load_base(folder, torch.bfloat16, "sdpa", nf4), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


def trained(model) -> tuple[float, torch.Tensor]:
    ids = torch.arange(4, 60)[None]
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.item(), torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("nf4", [False, True])
def test_a_fused_model_trains_as_pefts_does(tmp_path, nf4):
    folder = tiny_model(tmp_path / "base")
    plain, fused = build(folder, nf4), build(folder, nf4)
    assert fuse_adapters(fused) == 6
    (loss, gradient), (labelled_only, own_gradient) = trained(plain), trained(fused)
    assert labelled_only == pytest.approx(loss, rel=1e-3)
    assert torch.cosine_similarity(gradient, own_gradient, dim=0) > 0.9995


@pytest.mark.parametrize("lora", [{"use_dora": True}, {"lora_dropout": 0.1}])
def test_other_adapters_keep_pefts_forward(tmp_path, lora):
    assert fuse_adapters(build(tiny_model(tmp_path / "base"), False, **lora)) == 0


def test_without_input_casts_gradients_are_the_same_bits(tmp_path):
    folder = tiny_model(tmp_path / "base")
    plain, spared = build(folder, False), build(folder, False)
    disable_input_casts(spared)
    assert torch.equal(trained(plain)[1], trained(spared)[1])
