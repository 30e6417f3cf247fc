"""What to change so that a training fits its GPU."""

from dataclasses import replace

from llm_finetune.components.shared.modeling.memory import Adapter, Plan, Shape, estimate


def advise(shape: Shape, adapter: Adapter, plan: Plan, gpu_memory_gib: float, shortest: int) -> str:
    """Returns what to change so that a training fits.

    Args:
        shape: The model.
        adapter: Its adapter.
        plan: The training that does not fit.
        gpu_memory_gib: Memory of the GPU.
        shortest: Tokens of the longest row: a micro-batch can't be smaller.

    Returns:
        The mildest change that helps, as a sentence.
    """
    smaller = replace(plan, tokens=shortest)
    steps = [
        ("set gradient_checkpointing to on", replace(plan, checkpointing=True)),
        (f"set tokens_per_micro_batch to {shortest}", smaller),
        (
            f"set gradient_checkpointing to on and tokens_per_micro_batch to {shortest}",
            replace(smaller, checkpointing=True),
        ),
        ("set load_in_4bit and gradient_checkpointing to on", replace(plan, checkpointing=True, load_in_4bit=True)),
        (
            f"set load_in_4bit and gradient_checkpointing to on and tokens_per_micro_batch to {shortest}",
            replace(smaller, checkpointing=True, load_in_4bit=True),
        ),
    ]
    for change, changed in steps:
        needed = estimate(shape, adapter, changed).gib
        if changed != plan and needed <= gpu_memory_gib:
            return f"To fit, {change}: {needed:.1f} GiB."
    return "No setting makes it fit: take a larger GPU, several of them with parallel = fsdp, or a smaller model."
