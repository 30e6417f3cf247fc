"""Validates a model folder before a server is started."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_finetune.components.shared.engine.engines import BYTES, cache_values
from llm_finetune.components.shared.errors import UserError


@dataclass(frozen=True)
class ModelFolder:
    """Properties of a model that serving depends on.

    Attributes:
        path: The folder.
        context_length: Maximum sequence length in tokens; 0 if not in config.json.
        cache_values_per_token: Values in the KV cache per token; 0 if not in config.json.
        dtype: Type of the stored weights; empty if not in config.json.
    """

    path: Path
    context_length: int
    cache_values_per_token: int
    dtype: str

    def cache_bytes(self, tokens: int, dtype: str) -> int:
        """Returns the size of the KV cache for a number of tokens, in bytes."""
        return tokens * self.cache_values_per_token * BYTES[dtype]


def read(path: str | Path) -> ModelFolder:
    """Reads and validates the folder of a merged model.

    Args:
        path: Folder in Hugging Face format.

    Returns:
        The properties of the model.

    Raises:
        UserError: If the folder, its config, weights, tokenizer or chat template is missing or invalid.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"merged_model: {folder} is not a folder. Pass the output folder of Merge & Export")
    config = _json(folder, "config.json")
    _check_weights(folder)
    _check_tokenizer(folder)
    text = config.get("text_config") or config
    return ModelFolder(
        path=folder,
        context_length=int(text.get("max_position_embeddings") or 0),
        cache_values_per_token=cache_values(config),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or ""),
    )


def compute_dtype(requested: str, stored: str) -> str:
    """Resolves `auto` for float32 weights, which vLLM's auto converts to 16 bits.

    Merge & Export stores float32 if no narrower type preserves the training.

    Args:
        requested: `auto`, or a type.
        stored: Type of the stored weights.
    """
    return stored if requested == "auto" and stored == "float32" else requested


def base_of(adapter: Path) -> str:
    """Returns the base model in the configuration of an adapter; empty if it has none."""
    return str(_json(adapter, "adapter_config.json").get("base_model_name_or_path") or "")


def _check_weights(folder: Path) -> None:
    present = {file.name for file in folder.iterdir()}
    if "model.safetensors.index.json" in present:
        shards = set(_json(folder, "model.safetensors.index.json").get("weight_map", {}).values())
        if missing := sorted(shards - present):
            raise UserError(f"merged_model: {folder} lacks weight files of its index: {', '.join(missing)}")
    elif not any(name.endswith(".safetensors") for name in present):
        pickles = sorted(name for name in present if name.endswith((".bin", ".pt", ".pth")))
        found = f", only {', '.join(pickles)}, which can execute code when loaded" if pickles else ""
        raise UserError(
            f"merged_model: {folder} has no *.safetensors weights{found}. Export the model with "
            "save_format = safetensors"
        )


def _check_tokenizer(folder: Path) -> None:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(
            f"merged_model: {folder} has no tokenizer (tokenizer.json). Export the model with its tokenizer"
        )
    if any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json", "chat_templates")):
        return
    settings = _json(folder, "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    if not settings.get("chat_template"):
        raise UserError(
            f"merged_model: {folder} has no chat template (chat_template.jinja), which chat requests need. "
            "Format for SFT writes the template of the training data, and Merge & Export copies it"
        )


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"merged_model: {folder} has no {name}, so it is not a Hugging Face model folder") from None
    except ValueError as error:
        raise UserError(f"merged_model: {folder / name} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"merged_model: {folder / name} is not a JSON object")
    return value
