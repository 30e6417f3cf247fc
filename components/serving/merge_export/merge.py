"""Merges an adapter into the weights that it was trained on."""

import gc
import json
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftModel
from transformers import AutoConfig

from llm_finetune.components.serving.merge_export import shards, streaming
from llm_finetune.components.serving.merge_export.parity import Predictions, Rows, parity_rows, predict
from llm_finetune.components.serving.merge_export.weights import StoredWeights, cast
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.base_model import resolve
from llm_finetune.components.shared.modeling.causal_lm import load_base

SHARD_SIZE = 5 * 10**9
"""Maximum bytes per file, as for most models on the Hub."""
BYTES_MERGING = 5
"""Bytes per parameter of a merge in memory: float32 weights, one layer's product and the logits."""
EXPORT_DTYPES = ("bfloat16", "float16", "float32")
"""Types that vLLM supports (--dtype); weights of other types are exported in bfloat16."""


class Merger(Protocol):
    """A merge strategy."""

    def adapter_predictions(self, rows: Rows, original: bool = False) -> Predictions:
        """Returns the predictions of the adapter on its base.

        Args:
            rows: The rows.
            original: Whether to use the original weights of the base instead of those the adapter was trained on.
        """

    def write(self, folder: Path, dtype: torch.dtype) -> None:
        """Writes the merged weights and config.json into an empty folder.

        Raises:
            OutOfRange: If a weight is out of the range of `dtype`.
        """

    def merged_predictions(self, folder: Path, rows: Rows, dtype: torch.dtype) -> Predictions:
        """Returns the predictions of the merged model, read from its files and computed in `dtype`."""


def create_merger(model_config: str | Path, ft_result: str | Path, load_in_4bit: bool) -> Merger:
    """Chooses the merge strategy: streaming from the files, if the architecture supports it, else in memory.

    An adapter that was trained in 4 bit also compensates the quantization error, so it is merged into weights that were
    quantized to NF4 and dequantized. On the original weights, it is measurably worse; merged into 4-bit weights, it is
    lost in their rounding.

    Args:
        model_config: Folder of the base model, or its reference.
        ft_result: Folder of the adapter.
        load_in_4bit: Whether the adapter was trained on NF4 weights.

    Raises:
        UserError: If the adapter does not match the base.
    """
    folder = resolve(model_config)[0]
    if not (Path(ft_result) / "adapter_config.json").is_file():
        raise UserError(f"{ft_result} has no adapter_config.json: pass the ft_result of Fine-Tune LoRA")
    base = streaming.empty_model(folder, torch.float32)
    _check_vocabulary(base, Path(ft_result))
    reason = streaming.obstacle(base, StoredWeights(folder), ft_result)
    if reason:
        print(f"merging in memory: {reason}", flush=True)
        return InMemoryMerger(model_config, ft_result, load_in_4bit)
    return StreamingMerger(folder, ft_result, load_in_4bit)


class StreamingMerger:
    """Merges and runs the model from its files, with memory for one file and one layer."""

    def __init__(self, base: str | Path, ft_result: str | Path, load_in_4bit: bool) -> None:
        """Sets the folders of the base model and of the adapter."""
        self.base, self.ft_result = base, ft_result
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.original = StoredWeights(base)
        empty = streaming.empty_model(base, torch.float32)
        quantized = streaming.quantized_names(empty) if load_in_4bit else None
        self.trained_on = StoredWeights(base, quantized, self.device)

    def adapter_predictions(self, rows: Rows, original: bool = False) -> Predictions:
        """Returns the predictions of the adapter on the weights it was trained on, or on the original weights."""
        model = streaming.stream_weights(
            self._with_adapter(), self.original if original else self.trained_on, self.device
        )
        return predict(model, rows, self.device)

    def write(self, folder: Path, dtype: torch.dtype) -> None:
        """Writes the merged weights in files no larger than the largest file of the base."""
        shards.write_merged(self._with_adapter(), self.trained_on, folder, dtype, SHARD_SIZE)
        config = AutoConfig.from_pretrained(self.base, trust_remote_code=False)
        config.dtype = dtype
        config.save_pretrained(folder)

    def merged_predictions(self, folder: Path, rows: Rows, dtype: torch.dtype) -> Predictions:
        """Returns the predictions of the written model."""
        model = streaming.stream_weights(streaming.empty_model(folder, dtype), StoredWeights(folder), self.device)
        return predict(model, rows, self.device)

    def _with_adapter(self) -> Any:
        return streaming.with_adapter(streaming.empty_model(self.base, torch.float32), self.ft_result)


class InMemoryMerger:
    """Merges a model in memory, for architectures with other weight names in their files."""

    def __init__(self, model_config: str | Path, ft_result: str | Path, load_in_4bit: bool) -> None:
        """Sets the folders of the base model, or its reference, and of the adapter."""
        self.model_config, self.ft_result, self.load_in_4bit = model_config, ft_result, load_in_4bit
        self.device = choose_device(model_config)

    def adapter_predictions(self, rows: Rows, original: bool = False) -> Predictions:
        """Returns the predictions of the adapter on the weights it was trained on, or on the original weights."""
        try:
            return predict(self._with_adapter(self.load_in_4bit and not original), rows, self.device)
        finally:
            _free_memory()

    def write(self, folder: Path, dtype: torch.dtype) -> None:
        """Writes the merged weights."""
        try:
            merged = self._with_adapter(self.load_in_4bit).merge_and_unload(safe_merge=True)
        except ValueError as error:
            raise UserError(f"the adapter cannot be merged: {str(error).strip()}") from error
        for name, parameter in merged.named_parameters():
            cast(name, parameter.data, dtype)
        merged.to(dtype).save_pretrained(folder, max_shard_size=SHARD_SIZE)
        del merged
        _free_memory()

    def merged_predictions(self, folder: Path, rows: Rows, dtype: torch.dtype) -> Predictions:
        """Returns the predictions of the written model."""
        return predict(load_base(folder, dtype, device=self.device), rows, self.device)

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
                f"the adapter in {self.ft_result} does not match the base model: {str(error).strip()}"
            ) from error


def trained_in_4bit(ft_result: str | Path) -> bool:
    """Returns whether an adapter was trained on NF4 weights."""
    path = Path(ft_result) / "training.json"
    if not path.is_file():
        raise UserError(
            f"{ft_result} has no training.json, which records whether the adapter was trained in 4 bit: pass the "
            "ft_result of Fine-Tune LoRA"
        )
    return bool(json.loads(path.read_text(encoding="utf-8"))["load_in_4bit"])


def stored_dtype(model_config: str | Path) -> torch.dtype:
    """Returns the type of most weights of the base model if vLLM supports it, else bfloat16."""
    most = StoredWeights(resolve(model_config)[0]).types().most_common(1)[0][0]
    return getattr(torch, most) if most in EXPORT_DTYPES else torch.bfloat16


def model_type(model_config: str | Path) -> str:
    """Returns the architecture in the config.json of the base model."""
    return str(AutoConfig.from_pretrained(resolve(model_config)[0], trust_remote_code=False).model_type)


def choose_device(model_config: str | Path) -> str:
    """Returns `cuda` if a merge in memory fits on the GPU, else `cpu`."""
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
    """Refuses rows with tokens that have no embedding; the tokenizer itself may have such tokens."""
    if not (ft_result / "tokenizer.json").is_file():
        raise UserError(f"{ft_result} has no tokenizer.json: pass the ft_result of Fine-Tune LoRA")
    highest = max(max(row["input_ids"]) for row in parity_rows(ft_result))
    embeddings = base.get_input_embeddings().weight.shape[0]
    if highest >= embeddings:
        raise UserError(
            f"the rows of the adapter have token {highest:,}, but the base model has {embeddings:,} embeddings: the "
            "tokenizer is not of this model"
        )
