"""Apply LoRA: configures the adapter and checks it against the architecture, without a GPU."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from peft import LoraConfig
from transformers import PretrainedConfig

from llm_finetune.components.model.apply_lora.advice import advise
from llm_finetune.components.model.apply_lora.settings import Settings
from llm_finetune.components.model.apply_lora.targets import check_modules_to_save, check_targets, linear_names
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import atomic_folder, content_hash
from llm_finetune.components.shared.modeling.adapters import serving_obstacle
from llm_finetune.components.shared.modeling.architecture import (
    add_adapter,
    empty_model,
    liger_obstacle,
    model_shape,
    varlen_supports_gqa,
)
from llm_finetune.components.shared.modeling.attention import attention_implementation, packing_obstacle
from llm_finetune.components.shared.modeling.memory import AdapterShape, Memory, ModelShape, TrainingPlan, estimate
from llm_finetune.components.shared.summary import write_summary

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoraFacts:
    """Facts about an adapter; the metadata of `lora_config`.

    Attributes:
        lora_rank: Rank.
        lora_alpha: Scale: the adapter's output is multiplied by alpha/r (alpha/√r with rsLoRA).
        lora_dropout: Dropout probability of the adapter's input.
        target_modules: Modules that get an adapter.
        modules_to_save: Modules that are trained in full.
        init: Initialization of the adapter.
        use_dora: Weight-decomposed LoRA.
        use_rslora: Rank-stabilised scale.
        trainable_parameters: Number of trainable parameters.
        total_parameters: Number of all parameters, including the trainable ones.
        trainable_share: Their ratio.
        estimated_memory_gib: Estimated memory of one training GPU.
        fits: Whether that fits the memory of the GPU: `yes`, `no`, or `unknown` if gpu_memory_gib is not set.
        serves_as_adapter: Whether vLLM can serve the adapter on a shared base; if not, it must be merged.
        content_hash: Hash of the folder.
    """

    lora_rank: int
    lora_alpha: int
    lora_dropout: float
    target_modules: list[str]
    modules_to_save: list[str]
    init: str
    use_dora: bool
    use_rslora: bool
    trainable_parameters: int
    total_parameters: int
    trainable_share: float
    estimated_memory_gib: float
    fits: str
    serves_as_adapter: bool
    content_hash: str


def apply_lora(
    model_config: str | Path,
    lora_config: str | Path,
    model_summary: str | Path,
    settings: Settings,
    load_in_4bit: bool = False,
) -> LoraFacts:
    """Writes PEFT's adapter_config.json and the summary.

    Args:
        model_config: Folder of the base model, or its reference.
        lora_config: Folder to write.
        model_summary: Markdown file to write.
        settings: The card's settings.
        load_in_4bit: Whether the training keeps the frozen weights in NF4.

    Returns:
        Facts about the adapter.

    Raises:
        UserError: If a module does not exist in the architecture, or settings conflict.
    """
    if load_in_4bit and settings.init in ("pissa", "olora"):
        raise UserError(
            f"init = {settings.init!r} changes the base weights, which is impossible in 4 bit: set load_in_4bit to "
            "false in Load Base Model, or use default"
        )
    model = empty_model(model_config)
    targets = linear_names(model) if settings.target_names == [ALL_LINEAR] else settings.target_names
    check_targets(model, targets)
    check_modules_to_save(model, settings.saved_names, targets)
    shape = model_shape(model)
    plain = settings.model_copy(update={"init": "default"})  # the other initializations need weights
    adapter, total = add_adapter(model, _peft_config(plain, targets))
    plan = _plan(shape, adapter, settings, model.config, load_in_4bit)
    memory = estimate(shape, adapter, plan)
    with atomic_folder(lora_config) as folder:
        _write_adapter(folder, _peft_config(settings, targets))
    facts = LoraFacts(
        lora_rank=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        modules_to_save=settings.saved_names,
        init=settings.init,
        use_dora=settings.use_dora,
        use_rslora=settings.use_rslora,
        trainable_parameters=adapter.trainable,
        total_parameters=total,
        trainable_share=adapter.trainable / total,
        estimated_memory_gib=round(memory.gib, 2),
        fits=_fits(memory, settings.gpu_memory_gib),
        serves_as_adapter=not serving_obstacle(json.loads((Path(lora_config) / "adapter_config.json").read_text())),
        content_hash=content_hash(lora_config),
    )
    advice = advise(shape, adapter, plan, settings.gpu_memory_gib, settings.max_length) if facts.fits == "no" else ""
    _write_summary(model_summary, facts, memory, plan, advice, settings)
    return facts


def _peft_config(settings: Settings, targets: list[str]) -> LoraConfig:
    init = True if settings.init == "default" else cast(Literal["gaussian"], settings.init)  # or another of INITS
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        init_lora_weights=init,
        modules_to_save=settings.saved_names or None,
    )


def _write_adapter(folder: Path, adapter: LoraConfig) -> None:
    adapter.save_pretrained(str(folder))
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])  # a set in PEFT, whose order differs between runs
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _plan(
    shape: ModelShape, adapter: AdapterShape, settings: Settings, config: PretrainedConfig, load_in_4bit: bool
) -> TrainingPlan:
    rows = settings.batch_size * settings.max_length
    tokens = max(min(rows, settings.tokens_per_micro_batch), settings.max_length)  # at least one whole row
    eager = attention_implementation(config, preferred="varlen") == "eager"
    plan = TrainingPlan(
        tokens,
        settings.gradient_checkpointing == "on",
        load_in_4bit,
        fused=not liger_obstacle(config.model_type),
        grouped_queries=varlen_supports_gqa() and not eager,
        dense_mask=eager,
        eager=eager,
        row_tokens=settings.max_length if packing_obstacle(config) else 0,  # padded where rows can't be packed
    )
    if settings.gradient_checkpointing == "auto" and settings.gpu_memory_gib:
        return replace(plan, checkpointing=estimate(shape, adapter, plan).gib > settings.gpu_memory_gib)
    return plan


def _fits(memory: Memory, gpu_memory_gib: float) -> str:
    if not gpu_memory_gib:
        return "unknown"
    return "yes" if memory.gib <= gpu_memory_gib else "no"


def _write_summary(
    path: str | Path, facts: LoraFacts, memory: Memory, plan: TrainingPlan, advice: str, settings: Settings
) -> None:
    available = f" of {settings.gpu_memory_gib:g} GiB" if settings.gpu_memory_gib else ""
    shown = {
        "lora_rank": facts.lora_rank,
        "lora_alpha": facts.lora_alpha,
        "lora_dropout": facts.lora_dropout,
        "target_modules": ", ".join(facts.target_modules),
        "modules_to_save": ", ".join(facts.modules_to_save) or "none",
        "variant": ", ".join(name for name, on in (("DoRA", facts.use_dora), ("rsLoRA", facts.use_rslora)) if on)
        or "LoRA",
        "initialization": facts.init,
        "trainable parameters": f"{facts.trainable_parameters:,} of {facts.total_parameters:,}",
        "share": f"{facts.trainable_share:.3%}",
        "estimated GPU memory": f"{memory.gib:.1f} GiB{available}",
        "fits": facts.fits,
    }
    parts = {name: value / 2**30 for name, value in vars(memory).items()}
    notes = [
        "Memory: " + ", ".join(f"{name} {gib:.2f} GiB" for name, gib in parts.items()) + ".",
        f"The estimate assumes one GPU, {plan.tokens:,} tokens in a micro-batch, gradient checkpointing "
        f"{'on' if plan.checkpointing else 'off'}, frozen weights in {'NF4' if plan.load_in_4bit else 'bfloat16'}, "
        f"{'fused layers (Liger)' if plan.fused else 'unfused layers'}, adapter and optimizer in "
        f"{'bfloat16' if plan.load_in_4bit else 'float32'}, {_describe_attention(plan)}.",
    ]
    if advice:
        notes.append(advice)
    if not facts.serves_as_adapter:
        notes.append("vLLM can't serve this adapter on a shared base (DoRA, modules_to_save, PiSSA, OLoRA): merge it.")
    write_summary(path, "LoRA", shown, notes)


def _describe_attention(plan: TrainingPlan) -> str:
    if not plan.eager:
        return "attention without a dense mask"
    row = plan.row_tokens or plan.tokens
    return f"eager attention, which saves a score for every pair of the {row:,} tokens in a row"
