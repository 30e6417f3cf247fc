"""Reads the stored weights of a model, one tensor at a time."""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import parse_local_safetensors_file_metadata
from safetensors import safe_open

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.base_model import INDEX, SINGLE
from llm_finetune.components.shared.modeling.causal_lm import nf4_config
from llm_finetune.components.shared.modeling.weight_types import stored_types

ADAPTER_NAME = "default"
"""PEFT's default adapter name."""


class OutOfRange(UserError):
    """A weight is out of the range of a type."""


class StoredWeights(Mapping[str, torch.Tensor]):
    """Tensors of a model folder by name; each access reads the tensor from its file."""

    def __init__(self, folder: str | Path, quantized: Collection[str] | None = None, device: str = "cpu") -> None:
        """Reads the names.

        Args:
            folder: Folder with `model.safetensors`, or with shards and their index.
            quantized: Names of the weights to quantize to NF4 and dequantize, with all others in bfloat16: the weights
                that 4-bit training uses. None for the weights as stored.
            device: Device for the quantization.
        """
        self.folder, self.quantized, self.device = Path(folder), quantized, device
        self.files = _files(self.folder)

    def __getitem__(self, name: str) -> torch.Tensor:
        """Reads a tensor."""
        with safe_open(self.folder / self.files[name], framework="pt") as stored:
            tensor: torch.Tensor = stored.get_tensor(name)
        if self.quantized is None:
            return tensor
        return nf4_round_trip(tensor, self.device) if name in self.quantized else tensor.to(torch.bfloat16)

    def __iter__(self) -> Iterator[str]:
        """Returns the names."""
        return iter(self.files)

    def __len__(self) -> int:
        """Returns the number of tensors."""
        return len(self.files)

    def types(self) -> Counter[str]:
        """Returns the number of values per type, such as `bfloat16`, from the headers of the files."""
        files = sorted(set(self.files.values()))
        headers = (parse_local_safetensors_file_metadata(self.folder / file) for file in files)
        return stored_types(pair for header in headers for pair in header.parameter_count.items())

    def sizes(self) -> dict[str, int]:
        """Returns the number of values per tensor, from the headers of the files."""
        found: dict[str, int] = {}
        for file in sorted(set(self.files.values())):
            with safe_open(self.folder / file, framework="pt") as stored:
                names = [name for name in stored.keys() if self.files.get(name) == file]  # noqa: SIM118 - no mapping
                found |= {name: _count(stored.get_slice(name).get_shape()) for name in names}
        return {name: found[name] for name in self.files}


def cast(name: str, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Converts a weight to another type.

    Args:
        name: Name of the weight, for the message.
        values: Values of the weight.
        dtype: The type.

    Raises:
        OutOfRange: If a finite value becomes infinite.
    """
    if values.dtype == dtype:
        return values
    converted = values.to(dtype)
    if not _finite(converted) and _finite(values):
        most, largest = torch.finfo(dtype).max, max(abs(float(bound)) for bound in values.aminmax())
        raise OutOfRange(
            f"{name} reaches {largest:,.0f}, and the maximum of {str(dtype).removeprefix('torch.')} is {most:,.0f}"
        )
    return converted


def _finite(values: torch.Tensor) -> bool:
    return all(bool(bound.isfinite()) for bound in values.aminmax())


def nf4_round_trip(weight: torch.Tensor, device: str = "cpu") -> torch.Tensor:
    """Quantizes a weight to NF4 and dequantizes it to bfloat16, like a 4-bit layer."""
    import bitsandbytes

    config = nf4_config()
    quantized: Any = bitsandbytes.nn.Params4bit(
        weight.to(torch.bfloat16),
        requires_grad=False,
        compress_statistics=config.bnb_4bit_use_double_quant,
        quant_type=config.bnb_4bit_quant_type,
    )
    quantized = quantized.to(device)
    plain: torch.Tensor = bitsandbytes.functional.dequantize_4bit(quantized.data, quantized.quant_state)
    return plain.to("cpu", torch.bfloat16)


def _files(folder: Path) -> dict[str, str]:
    if (folder / INDEX).is_file():
        index: dict[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return index
    if not (folder / SINGLE).is_file():
        raise UserError(f"{folder} has no weights: neither {SINGLE} nor {INDEX}")
    with safe_open(folder / SINGLE, framework="pt") as stored:
        return dict.fromkeys(stored.keys(), SINGLE)


def _count(shape: list[int]) -> int:
    values = 1
    for length in shape:
        values *= length
    return values
