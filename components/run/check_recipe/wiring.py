"""Settings classes of all cards, and the mapping of pipeline parameters to settings."""

from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Literal, TypeVar, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from llm_finetune.components.data.data_report.settings import Settings as DataReport
from llm_finetune.components.data.filter_clean.settings import Settings as FilterClean
from llm_finetune.components.data.format_sft.settings import Settings as FormatSft
from llm_finetune.components.data.load_dataset.settings import Settings as LoadDataset
from llm_finetune.components.data.train_val_split.settings import Settings as TrainValSplit
from llm_finetune.components.evaluation.evaluate.settings import Settings as Evaluate
from llm_finetune.components.evaluation.quality_gate.settings import Settings as QualityGate
from llm_finetune.components.model.apply_lora.settings import Settings as ApplyLora
from llm_finetune.components.model.load_model.settings import Settings as LoadModel
from llm_finetune.components.serving.merge_export.settings import Settings as MergeExport
from llm_finetune.components.serving.vllm_serve.settings import Settings as VllmServe
from llm_finetune.components.shared.settings import CardSettings
from llm_finetune.components.tokens.tokenize.settings import Settings as Tokenize
from llm_finetune.components.training.finetune_lora.settings import Settings as FinetuneLora

Value = TypeVar("Value")

SETTINGS: dict[str, type[CardSettings]] = {
    "load_dataset": LoadDataset,
    "filter_clean": FilterClean,
    "train_val_split": TrainValSplit,
    "format_sft": FormatSft,
    "tokenize": Tokenize,
    "data_report": DataReport,
    "load_model": LoadModel,
    "apply_lora": ApplyLora,
    "finetune_lora": FinetuneLora,
    "evaluate": Evaluate,
    "quality_gate": QualityGate,
    "merge_export": MergeExport,
    "vllm_serve": VllmServe,
}

# Pipeline parameter → the settings (card, setting) that it sets. The first one defines its type and default.
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

# Descriptions of parameters that differ from the description of their first setting.
DESCRIPTIONS = {
    "jsonl_path": "One or several files, separated by commas: s3://, gs://, hf:// or https:// URLs, or paths under "
    "/mnt/data, the volume of data_claim; *, ?, [...] and ** are glob patterns (source_type jsonl_path).",
    "jsonl_url": "One or several https:// URLs of files, separated by commas (source_type jsonl_url).",
    "model_name": "Base model: Hub ID, or folder under /mnt/model-cache, the volume of model_cache.",
    "seed": "Random seed of split, packing, training and evaluation.",
    "namespace": "Namespace to deploy to; empty uses the namespace of the run.",
    "gpu_type": "Resource name of the GPUs in Kubernetes.",
    "gpu_count": "Number of GPUs for training and for the server, as a string.",
}

# Settings that several cards share: (card, setting) → the other cards with the same setting.
SHARED_SETTINGS: dict[tuple[str, str], tuple[str, ...]] = {
    ("finetune_lora", "tokens_per_micro_batch"): ("apply_lora",),
    ("finetune_lora", "gradient_checkpointing"): ("apply_lora",),
}

FIELD_CARDS = ("filter_clean", "train_val_split", "format_sft", "data_report")


def settings_of(card: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """Returns the settings of a card that pipeline parameters set.

    Args:
        card: Name of the card.
        values: Pipeline parameters by name: values, or KFP's channels while a pipeline is compiled.

    Returns:
        Values by name of the setting.
    """
    return {
        setting: values[parameter]
        for parameter, places in PARAMETERS.items()
        for name, setting in places
        if name == card and parameter in values
    }


def parameter_field(name: str) -> FieldInfo:
    """Returns the setting that defines type and default of a pipeline parameter."""
    card, setting = PARAMETERS[name][0]
    return SETTINGS[card].model_fields[setting]


def parameter_type(name: str) -> type:
    """Returns the type of a pipeline parameter: str, int, float, bool, list or dict."""
    return plain_type(parameter_field(name).annotation)


def plain_type(annotation: object) -> type:
    """Returns the type that a setting has in a KFP signature.

    Args:
        annotation: Annotation of a pydantic field.

    Returns:
        str, int, float, bool, list or dict.
    """
    origin = get_origin(annotation)
    if origin in (Annotated, Union, UnionType):
        return plain_type(get_args(annotation)[0])
    if origin is Literal:
        return type(get_args(annotation)[0])
    kind = origin or annotation
    if not isinstance(kind, type):
        raise TypeError(f"{annotation} has no type that KFP knows")
    return kind


def describe_parameter(name: str) -> str:
    """Returns the description of a pipeline parameter."""
    return DESCRIPTIONS.get(name) or parameter_field(name).description or ""
