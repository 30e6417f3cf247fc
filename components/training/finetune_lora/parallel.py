"""What each GPU holds and what it computes twice, decided from the memory that the training will take."""

import copy
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig

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
from llm_finetune.components.training.finetune_lora.settings import Settings


@dataclass(frozen=True)
class ParallelPlan:
    """How the training is laid out over the memory there is.

    Attributes:
        sharded: Whether the processes divide the frozen weights between them.
        checkpointing: Whether activations are computed again in the backward pass.
        reasons: A line for the log per choice.
    """

    sharded: bool
    checkpointing: bool
    reasons: tuple[str, ...]


def world_size() -> int:
    """Returns the number of processes that train, this one included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Tells whether this is the process that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"


def plan_parallelism(
    base_model: str | Path,
    adapter: LoraConfig,
    device: DevicePlan,
    settings: Settings,
    tokens: int,
    longest: int,
    load_in_4bit: bool,
) -> ParallelPlan:
    """Decides from the free memory of the fullest GPU, in every process the same.

    Args:
        base_model: Folder of the base model or its reference.
        adapter: The adapter's configuration.
        device: Choices for the device.
        settings: The card's settings.
        tokens: Most tokens in a micro-batch.
        longest: Tokens of the longest row.
        load_in_4bit: Whether the frozen weights are in NF4.

    Returns:
        The layout.

    Raises:
        UserError: If what was asked for is impossible.
    """
    processes = world_size()
    obstacle = sharding_obstacle(adapter, load_in_4bit)
    if processes > 1 and settings.parallel == "fsdp" and obstacle:
        raise UserError(f"parallel = 'fsdp' is not possible here, because {obstacle}. Use ddp")
    if device.device != "cuda":
        needed, free = MemoryEstimates(0.0, 0.0, 0.0, 0.0), 0.0
    else:
        plan = plan_memory(device, tokens, longest, load_in_4bit, processes)
        needed, free = needs(base_model, adapter, plan), _least_free()
    return choose(settings, processes, obstacle, needed, free)


def _least_free() -> float:
    """Returns the GiB that are free on this process's GPU, or on that of the process which has the least."""
    free = torch.cuda.mem_get_info()[0] / 2**30
    if world_size() == 1:
        return free
    store, rank, processes = next(torch.distributed.rendezvous("env://"))
    return least(store, rank, processes, free)


def least(store: torch.distributed.Store, rank: int, processes: int, figure: float) -> float:
    """Returns the least of the processes' figures, the same in each of them.

    Args:
        store: What they find each other through.
        rank: This process's place.
        processes: How many there are.
        figure: Its own figure.

    Returns:
        The least.
    """
    store.set(f"least/{rank}", repr(figure))
    return min(float(store.get(f"least/{other}")) for other in range(processes))


@dataclass(frozen=True)
class MemoryEstimates:
    """Estimated memory of one GPU in GiB.

    Attributes:
        whole: With all weights on every GPU.
        whole_checkpointed: The same, with checkpointing.
        divided: With the frozen weights divided between the GPUs.
        divided_checkpointed: The same, with checkpointing.
    """

    whole: float
    whole_checkpointed: float
    divided: float
    divided_checkpointed: float


def plan_memory(device: DevicePlan, tokens: int, longest: int, load_in_4bit: bool, processes: int) -> TrainingPlan:
    """Returns what of the training decides its memory, without checkpointing."""
    varlen = device.attention == "varlen"
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


def needs(base_model: str | Path, adapter: LoraConfig, plan: TrainingPlan) -> MemoryEstimates:
    """Estimates what each way of laying out the training takes."""
    model = empty_model(base_model)
    shape = model_shape(model)
    plain = copy.copy(adapter)
    plain.init_lora_weights = True  # the other initial values need weights to start from
    figures, _ = add_adapter(model, plain)
    return MemoryEstimates(
        *(
            estimate(shape, figures, replace(plan, sharded=sharded, checkpointing=checkpointing)).gib
            for sharded in (False, True)
            for checkpointing in (False, True)
        )
    )


def sharding_obstacle(adapter: LoraConfig, load_in_4bit: bool) -> str:
    """Says why the frozen weights cannot be divided between the GPUs (FSDP2).

    Args:
        adapter: The adapter's configuration.
        load_in_4bit: Whether the frozen weights are in NF4.

    Returns:
        The reason, or an empty string when they can.
    """
    if load_in_4bit:
        return "weights in 4 bit (load_in_4bit) cannot be divided"
    if adapter.use_dora:
        return "DoRA (use_dora) reads whole weights"
    if adapter.modules_to_save:
        return "modules_to_save are copies of divided weights"
    if changes_base(vars(adapter)):
        return f"init = {adapter.init_lora_weights!r} changes the weights"
    return ""


def choose(settings: Settings, processes: int, obstacle: str, needed: MemoryEstimates, free: float) -> ParallelPlan:
    """Chooses a layout: the fastest that fits.

    Args:
        settings: The card's settings.
        processes: Processes that train.
        obstacle: Why weights cannot be divided; empty when they can.
        needed: What each layout takes, in GiB.
        free: Free memory of the fullest GPU, in GiB; 0 where there is none.

    Returns:
        The layout, with the reasons.
    """
    least = needed.whole if settings.gradient_checkpointing == "off" else needed.whole_checkpointed
    fits_whole = not free or least <= free
    wanted = settings.parallel == "fsdp" or (settings.parallel == "auto" and not fits_whole and not obstacle)
    sharded = processes > 1 and wanted
    without = needed.divided if sharded else needed.whole
    checkpointing = settings.gradient_checkpointing == "on" or (
        settings.gradient_checkpointing == "auto" and 0 < free < without
    )
    reasons = [_checkpointing_reason(settings.gradient_checkpointing, checkpointing, without, free)]
    if processes > 1:
        how = "the frozen weights divided between them (FSDP2)" if sharded else "each with all weights (DDP)"
        if settings.parallel != "auto":
            why = "as asked"
        elif sharded:
            why = f"because all weights on each take {least:.1f} GiB and {free:.1f} are free"
        else:
            why = "because the model fits on each" if fits_whole else f"because {obstacle}"
        reasons.append(f"{processes} processes, {how}, {why}")
    return ParallelPlan(sharded, checkpointing, tuple(reasons))


def _checkpointing_reason(asked: str, checkpointing: bool, without: float, free: float) -> str:
    chosen = f"gradient checkpointing {'on' if checkpointing else 'off'}"
    if not free:
        return f"{chosen}, {'as asked' if asked != 'auto' else 'because there is no GPU whose memory could run out'}"
    estimated = f"without it the training takes {without:.1f} GiB (estimated) and {free:.1f} are free"
    return f"{chosen}, as asked: {estimated}" if asked != "auto" else f"{chosen}, because {estimated}"
