"""Writes merged weights file by file: what the adapter leaves alone is copied as bytes, what it changes is merged."""

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

from llm_finetune.components.serving.merge_export.weights import ADAPTER, StoredWeights, cast
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.base_model import INDEX
from llm_finetune.components.shared.modeling.losses import unwrap_peft

BLOCK = 2**21
"""Values merged at a time: 8 MB of float32, which the allocator keeps for the next block instead of the system."""
ALIGNED = 64
"""Blocks have a multiple of these rows: matrix products of odd ones are rounded otherwise than those of the whole."""
WRITERS = 4


def write_merged(model: Any, stored: StoredWeights, folder: Path, dtype: torch.dtype, shard_size: int) -> None:
    """Writes the merged weights.

    Args:
        model: From `streaming.with_adapter`, not fed.
        stored: The base's weights.
        folder: Where the files go.
        dtype: Precision to store.
        shard_size: Most bytes per file; where the base's own files are smaller, so are these.

    Raises:
        OutOfRange: If `dtype` can't hold a weight.
        UserError: If the adapter holds values that are not finite.
    """
    merge = _Merge(unwrap_peft(model), stored, dtype)
    files = _file_sizes(stored, dtype)
    if set(stored.types()) == {str(dtype).removeprefix("torch.")} and max(files.values()) <= shard_size:
        with ThreadPoolExecutor(min(WRITERS, os.cpu_count() or 1)) as pool:
            for _ in pool.map(lambda file: _write_patched(file, merge, folder), files):
                pass
        if (stored.folder / INDEX).is_file():
            shutil.copyfile(stored.folder / INDEX, folder / INDEX)
    else:
        _write_converted(merge, folder, min(shard_size, max(files.values())))


class _Merge:
    """The merged tensors by name."""

    def __init__(self, model: nn.Module, stored: StoredWeights, dtype: torch.dtype) -> None:
        """Takes the model with its adapter, the base's weights, and the precision to give."""
        self.stored, self.dtype = stored, dtype
        self.owners = dict(_owners(model))

    def changes(self, name: str) -> bool:
        """Tells whether a tensor comes out other than it is stored."""
        return name in self.owners or name in (self.stored.quantised or ())

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """Returns a merged tensor, in one piece or in rows."""
        owner = self.owners.get(name)
        if not isinstance(owner, LoraLayer):
            whole = self.stored[name] if owner is None else _trained(owner, name)
            yield cast(name, whole, self.dtype) if whole.is_floating_point() else whole
            return
        weight = self.stored[name]
        rows = max(BLOCK // weight.shape[-1] // ALIGNED, 1) * ALIGNED if _merges_by_rows(owner) else len(weight)
        for start in range(0, len(weight), rows):
            merged = cast(name, _merged(owner, weight[start : start + rows], start), self.dtype)
            if not all(bound.isfinite() for bound in merged.aminmax()):
                raise UserError(f"the adapter can't be merged: with it {name} holds values that are not finite")
            yield merged


def _file_sizes(stored: StoredWeights, dtype: torch.dtype) -> dict[str, int]:
    """Returns the bytes of the base's tensors by file, in a precision."""
    files: dict[str, int] = {}
    for name, count in stored.sizes().items():
        file = stored.files[name]
        files[file] = files.get(file, 0) + count * dtype.itemsize
    return files


def _write_patched(file: str, merge: _Merge, folder: Path) -> None:
    """Writes one of the base's files anew: the same header, the same bytes but for the tensors that change."""
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
            for piece in merge.pieces(name):
                merged.write(piece.contiguous().view(torch.uint8).numpy().data)
            copied = end
        _copy(base, merged, copied, source.stat().st_size)


def _copy(base: BinaryIO, merged: BinaryIO, begin: int, end: int) -> None:
    """Copies bytes from one file to the other's end, within the kernel."""
    merged.flush()
    while begin < end:
        begin += os.sendfile(merged.fileno(), base.fileno(), begin, end - begin)
    merged.seek(end)


def _write_converted(merge: _Merge, folder: Path, shard_size: int) -> None:
    """Writes files that are cut otherwise than the base's, or of another precision, one after the other."""
    sizes = {name: count * merge.dtype.itemsize for name, count in merge.stored.sizes().items()}
    plan = split_state_dict_into_shards_factory(
        sizes,
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        get_storage_id=lambda _: None,
        max_shard_size=shard_size,
    )
    for file, names in plan.filename_to_tensors.items():
        tensors = {name: _whole(list(merge.pieces(name))) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _whole(pieces: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0].contiguous()


def _owners(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Returns, by name of the stored weight, the layer or the trained copy that changes it."""
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield f"{path}.weight", module
        elif isinstance(module, ModulesToSaveWrapper):
            copy = module.modules_to_save[ADAPTER]
            yield from ((f"{path}.{name}", copy) for name, _ in copy.named_parameters())


def _trained(copy: nn.Module, name: str) -> torch.Tensor:
    return copy.get_parameter(name.rpartition(".")[2]).data


def _merges_by_rows(layer: LoraLayer) -> bool:
    """Tells whether every row of a merged weight depends on the same row of the base's and of lora_B alone."""
    return isinstance(layer, Linear) and not layer.fan_in_fan_out and ADAPTER not in layer.lora_variant


def _merged(layer: LoraLayer, rows: torch.Tensor, start: int) -> torch.Tensor:
    """Lets PEFT merge a weight, or some of its rows."""
    with _narrowed(layer, rows, start):
        layer.merge()
        base: Any = layer.get_base_layer()
        merged: torch.Tensor = base.weight.data
    return merged


@contextmanager
def _narrowed(layer: LoraLayer, rows: torch.Tensor, start: int) -> Iterator[None]:
    """Makes an adapted layer one of some rows, whose base weight is in memory."""
    base: Any = layer.get_base_layer()
    rows_of: Any = layer.lora_B[ADAPTER] if _merges_by_rows(layer) else None
    empty = base.weight
    full = None if rows_of is None else rows_of.weight
    try:
        base.weight = nn.Parameter(rows.float(), requires_grad=False)
        if full is not None:
            rows_of.weight = nn.Parameter(full[start : start + len(rows)], requires_grad=False)
        yield
    finally:
        base.weight = empty
        if full is not None:
            rows_of.weight = full
        layer.merged_adapters.clear()
