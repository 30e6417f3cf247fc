"""Looks at a model folder before anything is started: can vLLM load it, and can it chat?"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_finetune.components.shared.engine.engines import BYTES, cache_values
from llm_finetune.components.shared.errors import UserError


@dataclass(frozen=True)
class ModelFolder:
    """What serving needs to know of a model.

    Attributes:
        path: The folder.
        context_length: The longest sequence the model was made for, 0 if its config does not say.
        cache_values_per_token: Numbers that the KV cache keeps per token, 0 if the config does not say.
        dtype: Type of the stored weights, empty if its config does not say.
    """

    path: Path
    context_length: int
    cache_values_per_token: int
    dtype: str

    def cache_bytes(self, tokens: int, dtype: str) -> int:
        """Returns the bytes of KV cache that so many tokens take."""
        return tokens * self.cache_values_per_token * BYTES[dtype]


def read(path: str | Path) -> ModelFolder:
    """Checks a merged model's folder.

    Args:
        path: Folder in Hugging Face layout.

    Returns:
        The model's facts.

    Raises:
        UserError: If the folder, its config, weights, tokenizer or chat template is missing or broken.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"merged_model: {folder} is not a folder. Give the folder that Merge & Export wrote")
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


def unnarrowed(asked: str, stored: str) -> str:
    """Returns the type to compute in: the one asked for, but not vLLM's auto where that would narrow the weights.

    Args:
        asked: `auto`, or a type.
        stored: Type of the stored weights. Merge & Export stores float32 where no narrower type keeps what was
            trained; vLLM's auto would run it in 16 bits all the same.
    """
    return stored if asked == "auto" and stored == "float32" else asked


def base_of(adapter: Path) -> str:
    """Returns the base model that an adapter names."""
    return str(_json(adapter, "adapter_config.json").get("base_model_name_or_path") or "")


def _check_weights(folder: Path) -> None:
    present = {file.name for file in folder.iterdir()}
    if "model.safetensors.index.json" in present:
        shards = set(_json(folder, "model.safetensors.index.json").get("weight_map", {}).values())
        if missing := sorted(shards - present):
            raise UserError(f"merged_model: {folder} lacks weights that its index names: {', '.join(missing)}")
    elif not any(name.endswith(".safetensors") for name in present):
        pickles = sorted(name for name in present if name.endswith((".bin", ".pt", ".pth")))
        found = f", only {', '.join(pickles)}, which can run code when loaded" if pickles else ""
        raise UserError(
            f"merged_model: {folder} has no *.safetensors weights{found}. Merge & Export writes them with "
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
            f"merged_model: {folder} has no chat template (chat_template.jinja), so no chat request can be answered. "
            "Format for SFT writes the one that matches the training data and Merge & Export ships it"
        )


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"merged_model: {folder} has no {name}, so it is no Hugging Face model folder") from None
    except ValueError as error:
        raise UserError(f"merged_model: {folder / name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"merged_model: {folder / name} is not a JSON object")
    return value
