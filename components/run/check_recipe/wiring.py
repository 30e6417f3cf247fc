"""Which pipeline parameter goes to which settings of which cards."""

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")

CARDS = (
    "load_dataset",
    "filter_clean",
    "train_val_split",
    "format_sft",
    "tokenize",
    "data_report",
    "load_model",
    "apply_lora",
    "finetune_lora",
    "evaluate",
    "quality_gate",
    "merge_export",
    "vllm_serve",
)

# pipeline parameter → (card, setting), …
PARAMETERS: dict[str, tuple[tuple[str, str], ...]] = {
    "source_type": (("load_dataset", "source_type"),),
    "hf_dataset": (("load_dataset", "hf_dataset"),),
    "jsonl_path": (("load_dataset", "jsonl_path"),),
    "jsonl_url": (("load_dataset", "jsonl_url"),),
    "max_samples": (("load_dataset", "max_samples"),),
    "val_ratio": (("train_val_split", "val_ratio"),),
    "template": (("format_sft", "template"),),
    "model_name": (("load_model", "model_name"), ("tokenize", "model_name")),
    "load_in_4bit": (("load_model", "load_in_4bit"),),
    "max_length": (("tokenize", "max_length"), ("apply_lora", "max_length")),
    "lora_r": (("apply_lora", "r"),),
    "lora_alpha": (("apply_lora", "lora_alpha"),),
    "num_epochs": (("finetune_lora", "num_epochs"),),
    "batch_size": (("finetune_lora", "batch_size"), ("apply_lora", "batch_size")),
    "learning_rate": (("finetune_lora", "learning_rate"),),
    "seed": (
        ("train_val_split", "shuffle_seed"),
        ("tokenize", "seed"),
        ("finetune_lora", "seed"),
        ("evaluate", "seed"),
    ),
    "gate_rules": (("quality_gate", "rules"),),
    "deployment_name": (("vllm_serve", "deployment_name"),),
    "serve_target": (("vllm_serve", "target"),),
    "namespace": (("vllm_serve", "namespace"),),
    "gpu_type": (("vllm_serve", "gpu_type"),),
    "gpu_count": (("vllm_serve", "gpu_count"),),
}

# Text that may hold quotes and new lines. KFP pastes a parameter into a mapping as it is, which would break the JSON:
# these go to Check Recipe by themselves.
FREE_TEXT = ("jsonl_path", "jsonl_url", "template", "gate_rules")

# Settings that several cards of the recipe share: (card, setting) → the cards that get the same value.
SHARED_SETTINGS: dict[tuple[str, str], tuple[str, ...]] = {
    ("finetune_lora", "tokens_per_micro_batch"): ("apply_lora",),
    ("finetune_lora", "gradient_checkpointing"): ("apply_lora",),
}

FIELD_CARDS = ("filter_clean", "train_val_split", "format_sft", "data_report")


def settings_of(card: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """Returns the settings that pipeline parameters give to a card.

    Args:
        card: Name of the card.
        values: Pipeline parameters by name: values, or KFP's channels while a pipeline is compiled.

    Returns:
        Values by the card's own names.
    """
    return {
        setting: values[parameter]
        for parameter, places in PARAMETERS.items()
        for name, setting in places
        if name == card and parameter in values
    }
