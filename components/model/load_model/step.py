"""Load Base Model: brings a base model here, or pins it, and says what it is."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_finetune.components.model.load_model.disk import copy_files, place_weights
from llm_finetune.components.model.load_model.headers import Tensor, count_parameters, local_tensors
from llm_finetune.components.model.load_model.settings import Settings
from llm_finetune.components.model.load_model.source import Source, fetch_weights, find, licence
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
    """What a base model is; the metadata of `model_config`.

    Attributes:
        model_name: Hub id or absolute folder.
        revision: Commit of the Hub, or `sha256:…` over a folder's files.
        architecture: Its class in transformers.
        total_parameters: Parameters, tied ones counted once.
        load_in_4bit: Whether training shall keep the weights in NF4.
        context_length: Tokens that it was made for; 0 if its configuration does not say.
        dtype: Type that most weights are stored in.
        licence: As its model card names it.
        size_bytes: Bytes of weights and small files.
        chat_template: Whether its tokenizer has one.
        store: `copy` or `reference`.
        content_hash: Hash of the names and sizes of all files, the headers of the weights, the bytes of configuration
            and tokenizer, and the revision: it identifies the model without reading every weight again.
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
        """Returns what later cards shall know of the base model."""
        return {"base_model": self.model_name, "base_revision": self.revision, "base_licence": self.licence}


def load_model(model_config: str | Path, model_summary: str | Path, settings: Settings) -> ModelFacts:
    """Writes the model's folder, or a pinned reference to it, and the summary.

    Args:
        model_config: Folder to write: a Hugging Face model folder; with store=reference only its small files and
            `reference.json`.
        model_summary: Markdown file to write.
        settings: The card's settings.

    Returns:
        What the model is.

    Raises:
        UserError: If the model is missing, gated, out of reach or damaged, has no safetensors weights, is no causal
            language model, or does not fit on the disk.
    """
    source = find(settings.model_name, settings.revision, settings.cache_dir)
    config = _read_config(source)
    architecture = _causal_architecture(source, config)
    if not any(name in source.small for name in TOKENIZERS):
        raise UserError(f"{source.name} has no tokenizer (none of {', '.join(TOKENIZERS)}); add the files to the model")
    # With store=reference too: later cards, some of them on GPUs, shall find the weights in the cache and not wait.
    weights = source.folder if source.local else fetch_weights(source, settings.cache_dir)
    tensors = local_tensors(weights, source.weights)
    stamps = file_stamps(weights, source.files) if source.local else {}  # before the hash: a later change must show
    revision = source.revision or _folder_revision(source, settings.revision)
    facts = ModelFacts(
        model_name=source.name,
        revision=revision,
        architecture=architecture,
        total_parameters=count_parameters(tensors, _tied(config, tensors)),
        load_in_4bit=settings.load_in_4bit,
        context_length=_context_length(config),
        dtype=stored_types((tensor.dtype, tensor.size) for tensor in tensors).most_common(1)[0][0],
        licence=licence(source),
        size_bytes=source.size_bytes,
        chat_template=_has_chat_template(source),
        store=settings.store,
        content_hash=_content_hash(source, tensors, revision),
    )
    with atomic_folder(model_config) as folder:
        copy_files(source.small, weights, folder)
        if settings.store == "copy":
            place_weights(source.weights, weights, folder)
        else:
            pinned = {"model_name": source.name, "revision": revision, "files": source.files}
            text = json.dumps(pinned | {"cache_dir": settings.cache_dir, "stamps": stamps}, indent=2)
            (folder / REFERENCE).write_text(text + "\n", encoding="utf-8")
    _write_summary(model_summary, facts)
    return facts


def _read_config(source: Source) -> dict[str, Any]:
    if "config.json" not in source.small:
        raise UserError(f"{source.name} holds no config.json, so it is not a model in the layout of transformers")
    try:
        config: dict[str, Any] = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"config.json of {source.name} is not JSON: {error}") from error
    return config


def _causal_architecture(source: Source, config: dict[str, Any]) -> str:
    """Returns the architecture's name, or refuses what cannot be fine-tuned here."""
    architecture = next(iter(config.get("architectures") or []), "")
    if config.get("auto_map") and not _is_native(str(config.get("model_type")), architecture):
        raise UserError(
            f"{source.name} needs program code from its own repository ({config['auto_map']}); this suite never runs "
            "such code. Take a model whose architecture is part of transformers"
        )
    if not architecture.endswith(CAUSAL):
        raise UserError(
            f"{source.name} is {architecture or 'a model without an architecture in config.json'}, not a causal "
            "language model (…ForCausalLM): it can't be fine-tuned to answer prompts"
        )
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method:
        raise UserError(
            f"{source.name} is already quantised ({method}). An adapter can't be merged into such weights: take the "
            "16-bit model; load_in_4bit quantises it for the training"
        )
    return architecture


def _is_native(model_type: str, architecture: str) -> bool:
    """Tells whether transformers has a model itself, whose repository may still name the code that came before."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)).lower() == architecture.lower()


def _folder_revision(source: Source, wanted: str) -> str:
    if wanted:
        verify_revision(source.folder, source.files, wanted)
        return wanted
    return files_revision(source.folder, source.files)


def _tied(config: dict[str, Any], tensors: list[Tensor]) -> bool:
    """Whether head and embedding are one: by configuration or, where that is silent, by the default of the family."""
    text = config.get("text_config", config)
    silent = config.get("model_type", "").startswith(("gemma", "gpt2", "gpt_neo", "bloom", "opt", "falcon"))
    return bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", silent)))


def _context_length(config: dict[str, Any]) -> int:
    text = config.get("text_config", config)
    return int(next((text[name] for name in LENGTHS if isinstance(text.get(name), int)), 0))


def _has_chat_template(source: Source) -> bool:
    if any(name.startswith("chat_template.") for name in source.small):
        return True
    path = source.folder / "tokenizer_config.json"
    return path.is_file() and bool(json.loads(path.read_text(encoding="utf-8")).get("chat_template"))


def _content_hash(source: Source, tensors: list[Tensor], revision: str) -> str:
    whole = hashlib.sha256(f"{revision}\n{source.size_bytes}\n".encode())
    for name in source.small:
        whole.update(f"{name}\0{hashlib.sha256((source.folder / name).read_bytes()).hexdigest()}\n".encode())
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        whole.update(f"{tensor.name}\0{tensor.dtype}\0{tensor.shape}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def _write_summary(path: str | Path, facts: ModelFacts) -> None:
    shown = {
        "model": facts.model_name,
        "revision": facts.revision,
        "architecture": facts.architecture,
        "total_parameters": facts.total_parameters,
        "load_in_4bit": facts.load_in_4bit,
        "context length": facts.context_length or "not stated",
        "dtype": facts.dtype,
        "licence": facts.licence,
        "size on disk": format_bytes(facts.size_bytes),
        "chat template": facts.chat_template,
        "store": facts.store,
    }
    notes = []
    if not facts.chat_template:
        notes.append(
            "No chat template: use an instruction template in Format for SFT, whose chat template is then served."
        )
    if facts.licence == "unknown":
        notes.append("The model card names no licence: find out whether you may use and serve the model.")
    if facts.store == "reference":
        notes.append("Only configuration and tokenizer are kept here; later cards read the weights where they lie.")
    write_summary(path, "Base model", shown, notes)
