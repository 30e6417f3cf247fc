"""Writes merged weights file by file: unchanged tensors are copied as bytes, changed ones are merged."""

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from huggingface_hub import parse_local_safetensors_file_metadata, split_state_dict_into_shards_factory
from peft.tuners.lora import Linear, LoraLayer
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import save_file
from torch import nn

from llm_finetune.components.serving.merge_export.weights import ADAPTER_NAME, StoredWeights, cast
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.base_model import INDEX
from llm_finetune.components.shared.modeling.losses import unwrap_peft

CHUNK_VALUES = 2**21
"""Values merged at a time: 8 MB in float32, which the allocator reuses for the next chunk."""
ROW_ALIGNMENT = 64
"""Rows per chunk are a multiple of this: other matrix shapes are rounded differently from the whole matrix."""
WRITERS = 4


def write_merged(model: Any, stored: StoredWeights, folder: Path, dtype: torch.dtype, shard_size: int) -> None:
    """Writes the merged weights.

    Args:
        model: Model from `streaming.with_adapter`, without `stream_weights`.
        stored: Weights of the base.
        folder: Folder of the files.
        dtype: Type of the stored weights.
        shard_size: Maximum bytes per file; at most the size of the base's largest file.

    Raises:
        OutOfRange: If a weight is out of the range of `dtype`.
        UserError: If merged values are not finite.
    """
    merge = _MergedTensors(unwrap_peft(model), stored, dtype)
    files = _file_sizes(stored, dtype)
    if set(stored.types()) == {str(dtype).removeprefix("torch.")} and max(files.values()) <= shard_size:
        with ThreadPoolExecutor(min(WRITERS, os.cpu_count() or 1)) as pool:
            for _ in pool.map(lambda file: _write_patched(file, merge, folder), files):
                pass
        if (stored.folder / INDEX).is_file():
            shutil.copyfile(stored.folder / INDEX, folder / INDEX)
    else:
        _write_converted(merge, folder, min(shard_size, max(files.values())))


class _MergedTensors:
    """The merged tensors by name."""

    def __init__(self, model: nn.Module, stored: StoredWeights, dtype: torch.dtype) -> None:
        """Sets the model with its adapter, the weights of the base, and the type of the merged tensors."""
        self.stored, self.dtype = stored, dtype
        self.modules = dict(_changing_modules(model))

    def changes(self, name: str) -> bool:
        """Returns whether a merged tensor differs from the stored one."""
        return name in self.modules or name in (self.stored.quantized or ())

    def chunks(self, name: str) -> Iterator[torch.Tensor]:
        """Yields a merged tensor, whole or in chunks of rows."""
        module = self.modules.get(name)
        if not isinstance(module, LoraLayer):
            whole = self.stored[name] if module is None else _trained_copy(module, name)
            yield cast(name, whole, self.dtype) if whole.is_floating_point() else whole
            return
        weight = self.stored[name]
        rows = (
            max(CHUNK_VALUES // weight.shape[-1] // ROW_ALIGNMENT, 1) * ROW_ALIGNMENT
            if _merges_by_rows(module)
            else len(weight)
        )
        for start in range(0, len(weight), rows):
            merged = cast(name, _merge_rows(module, weight[start : start + rows], start), self.dtype)
            if not all(bound.isfinite() for bound in merged.aminmax()):
                raise UserError(f"the adapter cannot be merged: {name} would have values that are not finite")
            yield merged


def _file_sizes(stored: StoredWeights, dtype: torch.dtype) -> dict[str, int]:
    """Returns the size of the base's files in a type, in bytes."""
    files: dict[str, int] = {}
    for name, count in stored.sizes().items():
        file = stored.files[name]
        files[file] = files.get(file, 0) + count * dtype.itemsize
    return files


def _write_patched(file: str, merge: _MergedTensors, folder: Path) -> None:
    """Copies a file of the base and replaces the bytes of the changed tensors."""
    source = merge.stored.folder / file
    tensors = parse_local_safetensors_file_metadata(source).tensors
    with source.open("rb") as base, (folder / file).open("wb") as merged:
        header = 8 + int.from_bytes(base.read(8), "little")
        copied = 0
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
            begin, end = (header + offset for offset in tensor.data_offsets)
            if not merge.changes(name):
                continue
            _copy(base, merged, copied, begin)
            for piece in merge.chunks(name):
                merged.write(piece.contiguous().view(torch.uint8).numpy().data)
            copied = end
        _copy(base, merged, copied, source.stat().st_size)


def _copy(base: BinaryIO, merged: BinaryIO, begin: int, end: int) -> None:
    """Appends a range of bytes of one file to another with sendfile."""
    merged.flush()
    while begin < end:
        begin += os.sendfile(merged.fileno(), base.fileno(), begin, end - begin)
    merged.seek(end)


def _write_converted(merge: _MergedTensors, folder: Path, shard_size: int) -> None:
    """Writes files of another type or size than those of the base, one after the other."""
    sizes = {name: count * merge.dtype.itemsize for name, count in merge.stored.sizes().items()}
    plan = split_state_dict_into_shards_factory(
        sizes,
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        get_storage_id=lambda _: None,
        max_shard_size=shard_size,
    )
    for file, names in plan.filename_to_tensors.items():
        tensors = {name: _concatenate(list(merge.chunks(name))) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _concatenate(chunks: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(chunks) if len(chunks) > 1 else chunks[0].contiguous()


def _changing_modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yields the names of changed weights with the LoRA layer or the trained copy of the module."""
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield f"{path}.weight", module
        elif isinstance(module, ModulesToSaveWrapper):
            copy = module.modules_to_save[ADAPTER_NAME]
            yield from ((f"{path}.{name}", copy) for name, _ in copy.named_parameters())


def _trained_copy(copy: nn.Module, name: str) -> torch.Tensor:
    return copy.get_parameter(name.rpartition(".")[2]).data


def _merges_by_rows(layer: LoraLayer) -> bool:
    """Returns whether each row of a merged weight depends only on the same row of the base and of lora_B."""
    return isinstance(layer, Linear) and not layer.fan_in_fan_out and ADAPTER_NAME not in layer.lora_variant


def _merge_rows(layer: LoraLayer, rows: torch.Tensor, start: int) -> torch.Tensor:
    """Merges a weight, or some of its rows, with PEFT."""
    with _restricted_to_rows(layer, rows, start):
        layer.merge()
        base: Any = layer.get_base_layer()
        merged: torch.Tensor = base.weight.data
    return merged


@contextmanager
def _restricted_to_rows(layer: LoraLayer, rows: torch.Tensor, start: int) -> Iterator[None]:
    """Restricts a LoRA layer to some rows, with their base weights in memory."""
    base: Any = layer.get_base_layer()
    lora_b: Any = layer.lora_B[ADAPTER_NAME] if _merges_by_rows(layer) else None
    empty = base.weight
    full = None if lora_b is None else lora_b.weight
    try:
        base.weight = nn.Parameter(rows.float(), requires_grad=False)
        if full is not None:
            lora_b.weight = nn.Parameter(full[start : start + len(rows)], requires_grad=False)
        yield
    finally:
        base.weight = empty
        if full is not None:
            lora_b.weight = full
        layer.merged_adapters.clear()
