"""Load Base Model: stores or pins a base model and records facts about it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_finetune.components.model.load_model.disk import copy_files, link_or_copy
from llm_finetune.components.model.load_model.headers import Tensor, count_parameters, read_tensors
from llm_finetune.components.model.load_model.settings import Settings
from llm_finetune.components.model.load_model.source import ModelSource, download_weights, locate, read_license
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import atomic_folder
from llm_finetune.components.shared.modeling.base_model import REFERENCE, file_stamps, files_revision, verify_revision
from llm_finetune.components.shared.modeling.weight_types import stored_types
from llm_finetune.components.shared.summary import format_bytes, write_summary

CAUSAL = ("ForCausalLM", "LMHeadModel")
LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "max_sequence_length")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a base model; the metadata of `model_config`.

    Attributes:
        model_name: Hub id or absolute folder.
        revision: Commit of the Hub, or `sha256:…` over a folder's files.
        architecture: Its class in transformers.
        total_parameters: Number of parameters; tied ones are counted once.
        load_in_4bit: Whether training keeps the weights in NF4.
        context_length: Context length in tokens; 0 if its configuration does not name it.
        dtype: Data type of most stored weights.
        licence: Licence named by its model card.
        size_bytes: Bytes of all files.
        chat_template: Whether its tokenizer has one.
        store: `copy` or `reference`.
        content_hash: Hash of the names and sizes of all files, the headers of the weights, the bytes of configuration
            and tokenizer, and the revision. It identifies the model without reading all weights.
    """

    model_name: str
    revision: str
    architecture: str
    total_parameters: int
    load_in_4bit: bool
    context_length: int
    dtype: str
    licence: str
    size_bytes: int
    chat_template: bool
    store: str
    content_hash: str

    def origin(self) -> dict[str, str]:
        """Returns the base model's part of the lineage that later cards record."""
        return {"base_model": self.model_name, "base_revision": self.revision, "base_licence": self.licence}


def load_model(model_config: str | Path, model_summary: str | Path, settings: Settings) -> ModelFacts:
    """Writes the model's folder or a pinned reference to it, and the summary.

    Args:
        model_config: Folder to write: a Hugging Face model folder; with store=reference only the files other
            than weights, and `reference.json`.
        model_summary: Markdown file to write.
        settings: The card's settings.

    Returns:
        Facts about the model.

    Raises:
        UserError: If the model is missing, gated, unreachable or damaged, has no safetensors weights, is not a causal
            language model, or does not fit on the disk.
    """
    source = locate(settings.model_name, settings.revision, settings.cache_dir)
    config = _read_config(source)
    architecture = _causal_architecture(source, config)
    if not any(name in source.other_files for name in TOKENIZERS):
        raise UserError(f"{source.name} has no tokenizer (none of {', '.join(TOKENIZERS)}): add the files to the model")
    # With store=reference too, so that later cards, some of them on GPUs, do not wait for a download.
    weights = source.folder if source.is_local else download_weights(source, settings.cache_dir)
    tensors = read_tensors(weights, source.weights)
    stamps = (
        file_stamps(weights, source.files) if source.is_local else {}
    )  # before the hash, so that a later change is detected
    revision = source.revision or _folder_revision(source, settings.revision)
    facts = ModelFacts(
        model_name=source.name,
        revision=revision,
        architecture=architecture,
        total_parameters=count_parameters(tensors, _is_tied(config)),
        load_in_4bit=settings.load_in_4bit,
        context_length=_context_length(config),
        dtype=stored_types((tensor.dtype, tensor.size) for tensor in tensors).most_common(1)[0][0],
        licence=read_license(source),
        size_bytes=source.size_bytes,
        chat_template=_has_chat_template(source),
        store=settings.store,
        content_hash=_content_hash(source, tensors, revision),
    )
    with atomic_folder(model_config) as folder:
        copy_files(source.other_files, weights, folder)
        if settings.store == "copy":
            link_or_copy(source.weights, weights, folder)
        else:
            pinned = {"model_name": source.name, "revision": revision, "files": source.files}
            text = json.dumps(pinned | {"cache_dir": settings.cache_dir, "stamps": stamps}, indent=2)
            (folder / REFERENCE).write_text(text + "\n", encoding="utf-8")
    _write_summary(model_summary, facts)
    return facts


def _read_config(source: ModelSource) -> dict[str, Any]:
    if "config.json" not in source.other_files:
        raise UserError(f"{source.name} has no config.json, so it is not a model in the format of transformers")
    try:
        config: dict[str, Any] = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"config.json of {source.name} is not JSON: {error}") from error
    return config


def _causal_architecture(source: ModelSource, config: dict[str, Any]) -> str:
    """Returns the name of the architecture; raises if it can't be fine-tuned here."""
    architecture = next(iter(config.get("architectures") or []), "")
    if config.get("auto_map") and not _is_native(str(config.get("model_type")), architecture):
        raise UserError(
            f"{source.name} needs code from its own repository ({config['auto_map']}), which is never executed here. "
            "Use a model whose architecture is part of transformers"
        )
    if not architecture.endswith(CAUSAL):
        raise UserError(
            f"{source.name} is {architecture or 'a model without an architecture in config.json'}, not a causal "
            "language model (…ForCausalLM): it can't be fine-tuned to answer prompts"
        )
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method:
        raise UserError(
            f"{source.name} is already quantised ({method}). An adapter can't be merged into such weights: use the "
            "16-bit model; load_in_4bit quantises it for training"
        )
    return architecture


def _is_native(model_type: str, architecture: str) -> bool:
    """Returns whether the architecture is part of transformers, even if the repository still names its own code."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)).lower() == architecture.lower()


def _folder_revision(source: ModelSource, expected: str) -> str:
    if expected:
        verify_revision(source.folder, source.files, expected)
        return expected
    return files_revision(source.folder, source.files)


def _is_tied(config: dict[str, Any]) -> bool:
    """Returns whether head and embedding are one tensor: by configuration, else by the default of the family."""
    text = config.get("text_config", config)
    default = config.get("model_type", "").startswith(("gemma", "gpt2", "gpt_neo", "bloom", "opt", "falcon"))
    return bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", default)))


def _context_length(config: dict[str, Any]) -> int:
    text = config.get("text_config", config)
    return int(next((text[name] for name in LENGTHS if isinstance(text.get(name), int)), 0))


def _has_chat_template(source: ModelSource) -> bool:
    if any(name.startswith("chat_template.") for name in source.other_files):
        return True
    path = source.folder / "tokenizer_config.json"
    return path.is_file() and bool(json.loads(path.read_text(encoding="utf-8")).get("chat_template"))


def _content_hash(source: ModelSource, tensors: list[Tensor], revision: str) -> str:
    digest = hashlib.sha256(f"{revision}\n{source.size_bytes}\n".encode())
    for name in source.other_files:
        digest.update(f"{name}\0{hashlib.sha256((source.folder / name).read_bytes()).hexdigest()}\n".encode())
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        digest.update(f"{tensor.name}\0{tensor.dtype}\0{tensor.shape}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _write_summary(path: str | Path, facts: ModelFacts) -> None:
    shown = {
        "model": facts.model_name,
        "revision": facts.revision,
        "architecture": facts.architecture,
        "total_parameters": facts.total_parameters,
        "load_in_4bit": facts.load_in_4bit,
        "context length": facts.context_length or "unknown",
        "dtype": facts.dtype,
        "licence": facts.licence,
        "size on disk": format_bytes(facts.size_bytes),
        "chat template": facts.chat_template,
        "store": facts.store,
    }
    notes = []
    if not facts.chat_template:
        notes.append("No chat template: use an instruction template in Format for SFT; its chat template is served.")
    if facts.licence == "unknown":
        notes.append("The model card names no licence: check whether you are allowed to use and serve the model.")
    if facts.store == "reference":
        notes.append("The artifact contains configuration and tokenizer; later cards read the weights elsewhere.")
    write_summary(path, "Base model", shown, notes)
