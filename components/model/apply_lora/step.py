"""Apply LoRA: chooses the adapter and checks it against the architecture before a GPU is asked for."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import LoraConfig

from llm_finetune.components.model.apply_lora.advice import advise
from llm_finetune.components.model.apply_lora.settings import Settings
from llm_finetune.components.model.apply_lora.targets import check_saved, check_targets, linear_names
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import atomic_folder, content_hash
from llm_finetune.components.shared.modeling.adapters import unserved
from llm_finetune.components.shared.modeling.architecture import (
    adapter_of,
    empty_model,
    liger_obstacle,
    shape_of,
    shares_keys,
)
from llm_finetune.components.shared.modeling.attention import attention_of, mixing_obstacle
from llm_finetune.components.shared.modeling.memory import Adapter, Memory, Plan, Shape, estimate
from llm_finetune.components.shared.summary import write_summary

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoraFacts:
    """What an adapter comes to; the metadata of `lora_config`.

    Attributes:
        lora_rank: Rank.
        lora_alpha: Scale: the adapter's product is multiplied by alpha/r (alpha/√r with rsLoRA).
        lora_dropout: Dropout before the adapter.
        target_modules: Modules that get an adapter.
        modules_to_save: Modules that are trained in full.
        init: Initial values.
        use_dora: Weight-decomposed LoRA.
        use_rslora: Rank-stabilised scale.
        trainable_parameters: Parameters that the training changes.
        total_parameters: All parameters, the trainable ones included.
        trainable_share: Their ratio.
        estimated_memory_gib: Estimated memory of one training GPU.
        fits: Whether that fits the GPU that was asked for: `yes`, `no`, or `unknown` where its memory was not given.
        serves_as_adapter: Whether vLLM can serve the adapter on a shared base; if not, it has to be merged.
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
        What the adapter comes to.

    Raises:
        UserError: If a module does not exist in the architecture, or settings exclude each other.
    """
    if load_in_4bit and settings.init in ("pissa", "olora"):
        raise UserError(
            f"init = {settings.init!r} changes the base weights, which 4 bit can't hold: set load_in_4bit to false in "
            "Load Base Model, or use default"
        )
    model = empty_model(model_config)
    targets = linear_names(model) if settings.targets == [ALL_LINEAR] else settings.targets
    check_targets(model, targets)
    check_saved(model, settings.saved, targets)
    shape = shape_of(model)
    plain = settings.model_copy(update={"init": "default"})  # the other initial values need weights to start from
    adapter, total = adapter_of(model, _peft_config(plain, targets))
    plan = _plan(shape, adapter, settings, model.config, load_in_4bit)
    memory = estimate(shape, adapter, plan)
    with atomic_folder(lora_config) as folder:
        _write_adapter(folder, _peft_config(settings, targets))
    facts = LoraFacts(
        lora_rank=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        modules_to_save=settings.saved,
        init=settings.init,
        use_dora=settings.use_dora,
        use_rslora=settings.use_rslora,
        trainable_parameters=adapter.trainable,
        total_parameters=total,
        trainable_share=adapter.trainable / total,
        estimated_memory_gib=round(memory.gib, 2),
        fits=_fits(memory, settings.gpu_memory_gib),
        serves_as_adapter=not unserved(json.loads((Path(lora_config) / "adapter_config.json").read_text())),
        content_hash=content_hash(lora_config),
    )
    advice = advise(shape, adapter, plan, settings.gpu_memory_gib, settings.max_length) if facts.fits == "no" else ""
    _write_summary(model_summary, facts, memory, plan, advice, settings)
    return facts


def _peft_config(settings: Settings, targets: list[str]) -> LoraConfig:
    init: Any = True if settings.init == "default" else settings.init
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        init_lora_weights=init,
        modules_to_save=settings.saved or None,
    )


def _write_adapter(folder: Path, adapter: LoraConfig) -> None:
    adapter.save_pretrained(str(folder))
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])  # a set in PEFT: its order changes from run to run
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _plan(shape: Shape, adapter: Adapter, settings: Settings, config: Any, load_in_4bit: bool) -> Plan:
    rows = settings.batch_size * settings.max_length
    tokens = max(min(rows, settings.tokens_per_micro_batch), settings.max_length)  # at least one whole row
    eager = attention_of(config, wanted="varlen") == "eager"
    plan = Plan(
        tokens,
        settings.gradient_checkpointing == "on",
        load_in_4bit,
        fused=not liger_obstacle(config.model_type),
        shared_keys=shares_keys() and not eager,
        dense_mask=eager,
        eager=eager,
        row_tokens=settings.max_length if mixing_obstacle(config) else 0,  # padded where rows can't be packed
    )
    if settings.gradient_checkpointing == "auto" and settings.gpu_memory_gib:
        return replace(plan, checkpointing=estimate(shape, adapter, plan).gib > settings.gpu_memory_gib)
    return plan


def _fits(memory: Memory, gpu_memory_gib: float) -> str:
    if not gpu_memory_gib:
        return "unknown"
    return "yes" if memory.gib <= gpu_memory_gib else "no"


def _write_summary(
    path: str | Path, facts: LoraFacts, memory: Memory, plan: Plan, advice: str, settings: Settings
) -> None:
    asked = f" of {settings.gpu_memory_gib:g} GiB" if settings.gpu_memory_gib else ""
    shown = {
        "lora_rank": facts.lora_rank,
        "lora_alpha": facts.lora_alpha,
        "lora_dropout": facts.lora_dropout,
        "target_modules": ", ".join(facts.target_modules),
        "modules_to_save": ", ".join(facts.modules_to_save) or "none",
        "variant": ", ".join(name for name, on in (("DoRA", facts.use_dora), ("rsLoRA", facts.use_rslora)) if on)
        or "LoRA",
        "initial values": facts.init,
        "trainable parameters": f"{facts.trainable_parameters:,} of {facts.total_parameters:,}",
        "share": f"{facts.trainable_share:.3%}",
        "estimated GPU memory": f"{memory.gib:.1f} GiB{asked}",
        "fits": facts.fits,
    }
    parts = {name: value / 2**30 for name, value in vars(memory).items()}
    notes = [
        "Memory: " + ", ".join(f"{name} {gib:.2f} GiB" for name, gib in parts.items()) + ".",
        f"It assumes one GPU, {plan.tokens:,} tokens in a micro-batch, gradient checkpointing "
        f"{'on' if plan.checkpointing else 'off'}, frozen weights in {'NF4' if plan.load_in_4bit else 'bfloat16'}, "
        f"{'fused layers (Liger)' if plan.fused else 'layers that are not fused'}, adapter and optimizer in "
        f"{'bfloat16' if plan.load_in_4bit else 'float32'}, {_attention(plan)}.",
    ]
    if advice:
        notes.append(advice)
    if not facts.serves_as_adapter:
        notes.append("vLLM can't serve this adapter on a shared base (DoRA, modules_to_save, PiSSA, OLoRA): merge it.")
    write_summary(path, "LoRA", shown, notes)


def _attention(plan: Plan) -> str:
    if not plan.eager:
        return "attention without a mask matrix"
    row = plan.row_tokens or plan.tokens
    return f"plain attention, which keeps a score of every two of the {row:,} tokens in a row"
