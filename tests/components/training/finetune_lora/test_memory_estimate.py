"""The memory estimate, against tensors counted on a CPU and against what a GPU measured."""

import functools
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import tiny_model
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, LlamaForCausalLM

from llm_finetune.components.model.apply_lora.advice import advise
from llm_finetune.components.shared.modeling.architecture import add_adapter, model_shape
from llm_finetune.components.shared.modeling.memory import (
    AdapterShape,
    ModelShape,
    TrainingPlan,
    activation_bytes_per_token,
    estimate,
)
from llm_finetune.components.training.finetune_lora.device import plan_device
from llm_finetune.components.training.finetune_lora.fused import disable_input_casts, fuse_adapters
from llm_finetune.components.training.finetune_lora.parallel import estimate_memory, memory_plan

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
# The shapes of tests/bench/train_gpu.py.
SMALL = LlamaConfig(
    hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
    vocab_size=32000, tie_word_embeddings=False,
)  # fmt: skip
LARGE = LlamaConfig(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
    vocab_size=128256, tie_word_embeddings=False,
)  # fmt: skip


def figures(config: LlamaConfig | Gemma2Config, lora: LoraConfig) -> tuple[ModelShape, AdapterShape]:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return model_shape(model), add_adapter(model, lora)[0]


@functools.cache
def benchmarked(name: str) -> tuple[ModelShape, AdapterShape]:
    config = {"1.1b": SMALL, "8b": LARGE}[name]
    return figures(config, LoraConfig(r=16, target_modules=ATTENTION, task_type="CAUSAL_LM"))


# docs/benchmarks.md, "Training on one GPU": torch 2.11, whose varlen_attn has no enable_gqa, so that keys and values
# were repeated; LoRA r 16 on q, k, v, o, no dropout. Tokens: rows per micro-batch (33, 49 and 8 for 320, 480 and 80
# samples of the benchmark's documents) times their mean length.
@pytest.mark.parametrize(
    ("model", "tokens", "fused", "nf4", "peak_gib"),
    [
        ("1.1b", 33_693, True, False, 38.4),
        ("1.1b", 33_693, False, False, 52.6),
        ("1.1b", 50_029, True, False, 56.0),
        ("1.1b", 33_693, True, True, 37.1),
        ("8b", 8_167, True, False, 43.7),
        ("8b", 8_167, False, False, 54.9),
        ("8b", 8_167, True, True, 34.0),
    ],
)
def test_the_estimate_lies_above_the_measured_peak_and_within_15_percent(model, tokens, fused, nf4, peak_gib):
    shape, adapter = benchmarked(model)
    estimated = estimate(shape, adapter, TrainingPlan(tokens, False, nf4, fused, grouped_queries=False)).gib
    assert peak_gib < estimated < 1.15 * peak_gib


def test_with_checkpointing_too():
    """18.5 GiB: 8 B, one row of 8k tokens, the card before its adapters were fused, on the same GPU."""
    shape, adapter = benchmarked("8b")
    assert (
        18.5 < estimate(shape, adapter, TrainingPlan(8_192, True, False, True, grouped_queries=False)).gib < 1.15 * 18.5
    )


TINY = LlamaConfig(
    hidden_size=128, intermediate_size=352, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2,
    vocab_size=64, attn_implementation="sdpa",
)  # fmt: skip
TOKENS = 256


def counted(model: PeftModel, checkpointing: bool, value_bytes: int) -> int:
    """Bytes that autograd keeps of a forward pass through the decoder layers, weights and the final norm not counted."""
    model.train()
    model.enable_input_require_grads()  # or the first layer, whose input needs no gradient, would keep less
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16, enabled=value_bytes == 2),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        ids = torch.arange(TOKENS)[None] % 64
        hidden = model.get_base_model().model(input_ids=ids, use_cache=False).last_hidden_state
    assert hidden.requires_grad
    final_norm = TOKENS * (model.config.hidden_size * 4 + 4)
    return sum(storage.nbytes() for storage in kept.values()) - final_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "lora",
    [{"target_modules": ATTENTION}, {"target_modules": ["q_proj", "v_proj"]}, {"target_modules": "all-linear"},
     {"target_modules": ATTENTION, "lora_dropout": 0.1}, {"target_modules": ATTENTION, "use_dora": True}],
    ids=["attention", "q and v", "all", "dropout", "dora"],
)  # fmt: skip
def test_what_is_kept_is_what_autograd_keeps(lora, dtype):
    config = LoraConfig(r=8, task_type="CAUSAL_LM", **lora)
    shape, adapter = figures(TINY, config)
    bytes_each = dtype.itemsize
    adapter = replace(adapter, mask_bytes=adapter.mask_bytes * bytes_each)  # a CPU keeps dropout's mask as numbers
    model = get_peft_model(LlamaForCausalLM(TINY).to(dtype), config)
    disable_input_casts(model)
    if dtype is torch.bfloat16:
        fuse_adapters(model)
    plan = TrainingPlan(TOKENS, False, False, fused=False, grouped_queries=True, value_bytes=bytes_each)
    assert TOKENS * activation_bytes_per_token(shape, adapter, plan) == pytest.approx(
        counted(model, False, bytes_each), rel=0.05
    )


GEMMA = Gemma2Config(
    hidden_size=128, intermediate_size=352, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2,
    head_dim=16, vocab_size=64, attn_logit_softcapping=50.0, sliding_window=64,
)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [TINY, GEMMA], ids=["llama", "gemma2"])
def test_eager_attention_keeps_its_scores(config, dtype):
    lora = LoraConfig(r=8, task_type="CAUSAL_LM", target_modules=ATTENTION)
    shape, adapter = figures(config, lora)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype)
    model = get_peft_model(model, lora)
    disable_input_casts(model)
    if dtype is torch.bfloat16:
        fuse_adapters(model)
    plan = TrainingPlan(TOKENS, False, False, False, grouped_queries=False, value_bytes=dtype.itemsize, eager=True)
    kept = counted(model, False, dtype.itemsize)
    assert TOKENS * activation_bytes_per_token(shape, adapter, plan) == pytest.approx(kept, rel=0.05)
    without = replace(plan, eager=False)
    assert TOKENS * activation_bytes_per_token(shape, adapter, without) < 0.75 * kept
    # Rows that are padded keep a square each, not one square of them all.
    padded = replace(plan, tokens=4 * TOKENS, row_tokens=TOKENS)
    assert activation_bytes_per_token(shape, adapter, padded) == activation_bytes_per_token(shape, adapter, plan)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_checkpointing_the_layers_inputs_are_kept(dtype):
    config = LoraConfig(r=8, task_type="CAUSAL_LM", target_modules=ATTENTION)
    shape, adapter = figures(TINY, config)
    model = get_peft_model(LlamaForCausalLM(TINY).to(dtype), config)
    plan = TrainingPlan(TOKENS, True, False, fused=False, grouped_queries=True, value_bytes=dtype.itemsize)
    one_layer = activation_bytes_per_token(replace(shape, layers=1), adapter, replace(plan, checkpointing=False))
    one_layer -= (adapter.saved_values * dtype.itemsize) * (
        1 - 1 / shape.layers
    )  # the adapter's figures are all layers'
    kept = TOKENS * (activation_bytes_per_token(shape, adapter, plan) - one_layer)
    assert kept == pytest.approx(counted(model, True, dtype.itemsize), rel=0.05)


def test_weights_in_4_bit():
    shape, adapter = benchmarked("8b")
    memory = estimate(shape, adapter, TrainingPlan(4096, True, True, False, True))
    assert memory.weights / 1e9 == pytest.approx(5.7, rel=0.02)
    assert adapter.trainable == 13_631_488


def test_dividing_the_weights_spares_what_the_other_gpus_hold():
    shape, adapter = benchmarked("8b")
    plan = TrainingPlan(8192, False, False, True, True, processes=4)
    whole, divided = estimate(shape, adapter, plan), estimate(shape, adapter, replace(plan, sharded=True))
    assert whole.weights / 2**30 == pytest.approx(15.0, rel=0.01)
    assert whole.weights / 4 < divided.weights < whole.weights / 2
    assert divided.activations == whole.activations


def test_advice_is_the_mildest_change_that_fits():
    shape, adapter = benchmarked("8b")
    plan = TrainingPlan(16_384, False, False, False, True)
    assert estimate(shape, adapter, plan).gib > 80
    assert advise(shape, adapter, plan, 40, 1024).startswith("To fit, set gradient_checkpointing to on: ")
    assert "load_in_4bit" in advise(shape, adapter, plan, 15, 1024)
    assert advise(shape, adapter, plan, 4, 1024).startswith("No setting makes it fit")


def test_the_training_estimates_from_the_model_s_folder(tmp_path):
    folder = tiny_model(tmp_path / "base")
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights="pissa")
    device = plan_device(LlamaConfig.from_pretrained(folder), True, "float32")
    found = estimate_memory(folder, lora, memory_plan(device, 10**6, 1000, False, 2))
    assert found.replicated_checkpointed < found.replicated and found.sharded_checkpointed < found.sharded
    assert lora.init_lora_weights == "pissa"
