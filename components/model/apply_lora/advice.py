"""Recommends a setting that makes a training fit its GPU."""

from dataclasses import replace

from llm_finetune.components.shared.modeling.memory import AdapterShape, ModelShape, TrainingPlan, estimate


def advise(shape: ModelShape, adapter: AdapterShape, plan: TrainingPlan, gpu_memory_gib: float, min_tokens: int) -> str:
    """Recommends a change that makes a training fit.

    Args:
        shape: The model.
        adapter: Its adapter.
        plan: The training that does not fit.
        gpu_memory_gib: Memory of the GPU in GiB.
        min_tokens: Minimum tokens in a micro-batch: those of the longest row.

    Returns:
        A sentence with the first change that is enough; those that slow the training down least are tried first.
    """
    smaller = replace(plan, tokens=min_tokens)
    changes = [
        ("set gradient_checkpointing to on", replace(plan, checkpointing=True)),
        (f"set tokens_per_micro_batch to {min_tokens}", smaller),
        (
            f"set gradient_checkpointing to on and tokens_per_micro_batch to {min_tokens}",
            replace(smaller, checkpointing=True),
        ),
        ("set load_in_4bit and gradient_checkpointing to on", replace(plan, checkpointing=True, load_in_4bit=True)),
        (
            f"set load_in_4bit and gradient_checkpointing to on and tokens_per_micro_batch to {min_tokens}",
            replace(smaller, checkpointing=True, load_in_4bit=True),
        ),
    ]
    for change, changed in changes:
        needed = estimate(shape, adapter, changed).gib
        if changed != plan and needed <= gpu_memory_gib:
            return f"To fit, {change}: {needed:.1f} GiB."
    return "No setting makes it fit: use a larger GPU, several GPUs with parallel = fsdp, or a smaller model."
