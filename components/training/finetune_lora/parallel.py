"""Decides from the estimated memory whether to shard the frozen weights and whether to checkpoint gradients."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig
from torch.distributed.rendezvous import rendezvous

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.adapters import changes_base
from llm_finetune.components.shared.modeling.architecture import (
    add_adapter,
    empty_model,
    model_shape,
    varlen_supports_gqa,
)
from llm_finetune.components.shared.modeling.memory import TrainingPlan, estimate
from llm_finetune.components.training.finetune_lora.device import DevicePlan
from llm_finetune.components.training.finetune_lora.distributed import min_over_processes, world_size
from llm_finetune.components.training.finetune_lora.settings import Settings
from llm_finetune.components.training.finetune_lora.varlen import VARLEN


@dataclass(frozen=True)
class ParallelPlan:
    """How the training uses the memory of the GPUs.

    Attributes:
        sharded: Whether the processes shard the frozen weights (FSDP2).
        checkpointing: Whether activations are recomputed in the backward pass.
        reasons: One log line per choice.
    """

    sharded: bool
    checkpointing: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class MemoryEstimates:
    """Estimated memory of one GPU in GiB.

    Attributes:
        replicated: With all weights on every GPU (DDP).
        replicated_checkpointed: The same, with gradient checkpointing.
        sharded: With the frozen weights sharded over the GPUs (FSDP2).
        sharded_checkpointed: The same, with gradient checkpointing.
    """

    replicated: float
    replicated_checkpointed: float
    sharded: float
    sharded_checkpointed: float


def plan_parallelism(
    base_model: str | Path,
    adapter: LoraConfig,
    device: DevicePlan,
    settings: Settings,
    tokens: int,
    longest: int,
    load_in_4bit: bool,
) -> ParallelPlan:
    """Chooses the fastest plan that fits the GPU with the least free memory; the same in every process.

    Args:
        base_model: Folder of the base model or its reference.
        adapter: The adapter's configuration.
        device: Choices for the device.
        settings: The card's settings.
        tokens: Maximum tokens in a micro-batch.
        longest: Tokens of the longest row.
        load_in_4bit: Whether the frozen weights are in NF4.

    Returns:
        The plan.

    Raises:
        UserError: If the settings require something impossible.
    """
    processes = world_size()
    obstacle = sharding_obstacle(adapter, load_in_4bit)
    if processes > 1 and settings.parallel == "fsdp" and obstacle:
        raise UserError(f"parallel = 'fsdp' is not possible here, because {obstacle}. Use ddp")
    if device.device != "cuda":
        estimates, free_gib = MemoryEstimates(0.0, 0.0, 0.0, 0.0), 0.0
    else:
        plan = memory_plan(device, tokens, longest, load_in_4bit, processes)
        estimates, free_gib = estimate_memory(base_model, adapter, plan), _min_free_gib()
    return choose_plan(settings, processes, obstacle, estimates, free_gib)


def _min_free_gib() -> float:
    """Returns the free memory of this process's GPU, or the minimum over all processes, in GiB."""
    free = torch.cuda.mem_get_info()[0] / 2**30
    if world_size() == 1:
        return free
    store, rank, processes = next(rendezvous("env://"))
    return min_over_processes(store, rank, processes, free)


def memory_plan(device: DevicePlan, tokens: int, longest: int, load_in_4bit: bool, processes: int) -> TrainingPlan:
    """Returns the choices that determine the training's memory, without gradient checkpointing."""
    varlen = device.attention == VARLEN
    return TrainingPlan(
        tokens=tokens,
        checkpointing=False,
        load_in_4bit=load_in_4bit,
        fused=device.fused_layers,
        grouped_queries=varlen and varlen_supports_gqa(),
        dense_mask=not varlen,
        value_bytes=device.base_dtype.itemsize,
        processes=processes,
        eager=device.attention == "eager",
        row_tokens=0 if device.padding_free else longest,
    )


def estimate_memory(base_model: str | Path, adapter: LoraConfig, plan: TrainingPlan) -> MemoryEstimates:
    """Estimates the memory of the training, replicated and sharded, with and without gradient checkpointing."""
    model = empty_model(base_model)
    shape = model_shape(model)
    plain = copy.copy(adapter)
    plain.init_lora_weights = True  # the other initializations need weights
    adapter_shape, _ = add_adapter(model, plain)
    return MemoryEstimates(
        *(
            estimate(shape, adapter_shape, replace(plan, sharded=sharded, checkpointing=checkpointing)).gib
            for sharded in (False, True)
            for checkpointing in (False, True)
        )
    )


def sharding_obstacle(adapter: LoraConfig, load_in_4bit: bool) -> str:
    """Returns why the frozen weights cannot be sharded (FSDP2); empty if they can.

    Args:
        adapter: The adapter's configuration.
        load_in_4bit: Whether the frozen weights are in NF4.
    """
    if load_in_4bit:
        return "weights in 4 bit (load_in_4bit) cannot be sharded"
    if adapter.use_dora:
        return "DoRA (use_dora) reads unsharded weights"
    if adapter.modules_to_save:
        return "modules_to_save are copies of sharded weights"
    if changes_base(vars(adapter)):
        return f"init = {adapter.init_lora_weights!r} changes the weights"
    return ""


def choose_plan(
    settings: Settings, processes: int, obstacle: str, estimates: MemoryEstimates, free_gib: float
) -> ParallelPlan:
    """Chooses the fastest plan that fits.

    Args:
        settings: The card's settings.
        processes: Processes that train.
        obstacle: Why weights cannot be sharded; empty if they can.
        estimates: Memory of each plan, in GiB.
        free_gib: Minimum free memory of the GPUs, in GiB; 0 without a GPU.

    Returns:
        The plan, with the reasons.
    """
    replicated = estimates.replicated if settings.gradient_checkpointing == "off" else estimates.replicated_checkpointed
    fits_replicated = not free_gib or replicated <= free_gib
    wanted = settings.parallel == "fsdp" or (settings.parallel == "auto" and not fits_replicated and not obstacle)
    sharded = processes > 1 and wanted
    without = estimates.sharded if sharded else estimates.replicated
    checkpointing = settings.gradient_checkpointing == "on" or (
        settings.gradient_checkpointing == "auto" and 0 < free_gib < without
    )
    reasons = [_checkpointing_reason(settings.gradient_checkpointing, checkpointing, without, free_gib)]
    if processes > 1:
        how = "the frozen weights sharded over them (FSDP2)" if sharded else "each with all weights (DDP)"
        if settings.parallel != "auto":
            why = "as set"
        elif sharded:
            why = f"because all weights on each take {replicated:.1f} GiB and {free_gib:.1f} are free"
        else:
            why = "because the model fits on each" if fits_replicated else f"because {obstacle}"
        reasons.append(f"{processes} processes, {how}, {why}")
    return ParallelPlan(sharded, checkpointing, tuple(reasons))


def _checkpointing_reason(setting: str, checkpointing: bool, without: float, free_gib: float) -> str:
    chosen = f"gradient checkpointing {'on' if checkpointing else 'off'}"
    if not free_gib:
        return f"{chosen}, {'as set' if setting != 'auto' else 'because there is no GPU memory to save'}"
    estimated = f"without it the training takes {without:.1f} GiB (estimated) and {free_gib:.1f} are free"
    return f"{chosen}, as set: {estimated}" if setting != "auto" else f"{chosen}, because {estimated}"
