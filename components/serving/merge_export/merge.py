"""Merges an adapter into the weights that it was trained against."""

import gc
import json
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftModel
from transformers import AutoConfig

from llm_finetune.components.serving.merge_export import shards, streaming
from llm_finetune.components.serving.merge_export.parity import Answers, Rows, answers, parity_rows
from llm_finetune.components.serving.merge_export.weights import StoredWeights, cast
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.base_model import resolve
from llm_finetune.components.shared.modeling.causal_lm import load_base

SHARD_SIZE = 5 * 10**9
"""As large as the Hub's own models are cut."""
BYTES_MERGING = 5
"""Bytes per parameter while merging in memory: float32 weights and room for one layer's product and the logits."""
EXPORTED = ("bfloat16", "float16", "float32")
"""Types that vLLM serves (its --dtype); weights stored in another one are exported in bfloat16."""


class Merger(Protocol):
    """One way to merge."""

    def adapter_answers(self, rows: Rows, original: bool = False) -> Answers:
        """Returns what the adapter on its base answers.

        Args:
            rows: Rows to answer.
            original: Whether to take the base's original weights, whatever the adapter was trained against.
        """

    def write(self, folder: Path, dtype: torch.dtype) -> None:
        """Writes the merged weights and their config.json into an empty folder.

        Raises:
            OutOfRange: If `dtype` can't hold a weight.
        """

    def merged_answers(self, folder: Path, rows: Rows, dtype: torch.dtype) -> Answers:
        """Returns what the merged model answers, read back from its files and run in `dtype`."""


def merger(model_config: str | Path, ft_result: str | Path, load_in_4bit: bool) -> Merger:
    """Chooses how to merge: from the files, a layer at a time, wherever the architecture can.

    An adapter that was trained in 4 bit has learnt to mend what the quantisation changed, so its base is quantised the
    same way and put back. Added to the original weights, the same adapter is measurably worse; added in place to 4-bit
    weights, useless.

    Args:
        model_config: Folder of the base model, or its reference.
        ft_result: Folder of the adapter.
        load_in_4bit: Whether it was trained against NF4 weights.

    Raises:
        UserError: If adapter and base do not fit each other.
    """
    folder = resolve(model_config)[0]
    if not (Path(ft_result) / "adapter_config.json").is_file():
        raise UserError(f"{ft_result} holds no adapter_config.json: give the ft_result of Fine-Tune LoRA")
    base = streaming.empty_model(folder, torch.float32)
    _check_vocabulary(base, Path(ft_result))
    reason = streaming.obstacle(base, StoredWeights(folder), ft_result)
    if reason:
        print(f"merging with the whole model in memory: {reason}", flush=True)
        return InMemory(model_config, ft_result, load_in_4bit)
    return FromFiles(folder, ft_result, load_in_4bit)


class FromFiles:
    """Merges and runs the model from its files: memory for one file and one layer, whatever the model."""

    def __init__(self, base: str | Path, ft_result: str | Path, load_in_4bit: bool) -> None:
        """Takes the folders of the base's weights and of the adapter."""
        self.base, self.ft_result = base, ft_result
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.original = StoredWeights(base)
        empty = streaming.empty_model(base, torch.float32)
        quantised = streaming.quantised_names(empty) if load_in_4bit else None
        self.trained_on = StoredWeights(base, quantised, self.device)

    def adapter_answers(self, rows: Rows, original: bool = False) -> Answers:
        """Returns what the adapter answers on the weights it was trained on, or on the original ones."""
        model = streaming.fed(self._with_adapter(), self.original if original else self.trained_on, self.device)
        return answers(model, rows, self.device)

    def write(self, folder: Path, dtype: torch.dtype) -> None:
        """Writes the merged weights, no file larger than the base's largest."""
        shards.write_merged(self._with_adapter(), self.trained_on, folder, dtype, SHARD_SIZE)
        config = AutoConfig.from_pretrained(self.base, trust_remote_code=False)
        config.dtype = dtype
        config.save_pretrained(folder)

    def merged_answers(self, folder: Path, rows: Rows, dtype: torch.dtype) -> Answers:
        """Returns what the written model answers."""
        model = streaming.fed(streaming.empty_model(folder, dtype), StoredWeights(folder), self.device)
        return answers(model, rows, self.device)

    def _with_adapter(self) -> Any:
        return streaming.with_adapter(streaming.empty_model(self.base, torch.float32), self.ft_result)


class InMemory:
    """Merges a model that is loaded whole, for architectures whose files name their weights differently."""

    def __init__(self, model_config: str | Path, ft_result: str | Path, load_in_4bit: bool) -> None:
        """Takes the folders of the base model, or its reference, and of the adapter."""
        self.model_config, self.ft_result, self.load_in_4bit = model_config, ft_result, load_in_4bit
        self.device = choose_device(model_config)

    def adapter_answers(self, rows: Rows, original: bool = False) -> Answers:
        """Returns what the adapter answers on the weights it was trained on, or on the original ones."""
        try:
            return answers(self._with_adapter(self.load_in_4bit and not original), rows, self.device)
        finally:
            _free_memory()

    def write(self, folder: Path, dtype: torch.dtype) -> None:
        """Writes the merged weights."""
        try:
            merged = self._with_adapter(self.load_in_4bit).merge_and_unload(safe_merge=True)
        except ValueError as error:
            raise UserError(f"the adapter can't be merged: {str(error).strip()}") from error
        for name, parameter in merged.named_parameters():
            cast(name, parameter.data, dtype)
        merged.to(dtype).save_pretrained(folder, max_shard_size=SHARD_SIZE)
        del merged
        _free_memory()

    def merged_answers(self, folder: Path, rows: Rows, dtype: torch.dtype) -> Answers:
        """Returns what the written model answers."""
        return answers(load_base(folder, dtype, device=self.device), rows, self.device)

    def _with_adapter(self, in_4bit: bool) -> Any:
        base = load_base(self.model_config, torch.bfloat16 if in_4bit else torch.float32, "sdpa", in_4bit, self.device)
        if in_4bit:
            base = base.dequantize().float()
            if hasattr(base.config, "quantization_config"):
                del base.config.quantization_config
        base.config.name_or_path = ""
        try:
            return PeftModel.from_pretrained(base, str(self.ft_result)).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"the adapter in {self.ft_result} does not fit the base model: {str(error).strip()}"
            ) from error


def trained_in_4bit(ft_result: str | Path) -> bool:
    """Tells whether an adapter was trained against NF4 weights."""
    path = Path(ft_result) / "training.json"
    if not path.is_file():
        raise UserError(
            f"{ft_result} holds no training.json, so it isn't known whether the adapter was trained in 4 bit: "
            "give the ft_result of Fine-Tune LoRA"
        )
    return bool(json.loads(path.read_text(encoding="utf-8"))["load_in_4bit"])


def stored_dtype(model_config: str | Path) -> torch.dtype:
    """Returns the type that most of the base model's weights are stored in; of other types, the one to compute in."""
    most = StoredWeights(resolve(model_config)[0]).types().most_common(1)[0][0]
    return getattr(torch, most) if most in EXPORTED else torch.bfloat16


def model_type(model_config: str | Path) -> str:
    """Returns the base model's architecture, as its config.json names it."""
    return str(AutoConfig.from_pretrained(resolve(model_config)[0], trust_remote_code=False).model_type)


def choose_device(model_config: str | Path) -> str:
    """Returns `cuda` if a GPU has room for a merge in memory, else `cpu`."""
    if not torch.cuda.is_available():
        return "cpu"
    stored = sum(file.stat().st_size for file in Path(resolve(model_config)[0]).glob("*.safetensors"))
    parameters = stored / stored_dtype(model_config).itemsize
    free, _ = torch.cuda.mem_get_info()
    return "cuda" if parameters * BYTES_MERGING < free else "cpu"


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _check_vocabulary(base: Any, ft_result: Path) -> None:
    """Refuses token rows that the base has no embedding for; a tokenizer may well have a few more tokens than that."""
    if not (ft_result / "tokenizer.json").is_file():
        raise UserError(f"{ft_result} holds no tokenizer.json: give the ft_result of Fine-Tune LoRA")
    highest = max(max(row["input_ids"]) for row in parity_rows(ft_result))
    embeddings = base.get_input_embeddings().weight.shape[0]
    if highest >= embeddings:
        raise UserError(
            f"the rows beside the adapter use token {highest:,}, the base model has embeddings for {embeddings:,}: "
            "the tokenizer is not this model's"
        )
