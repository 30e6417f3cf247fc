"""A model's stored weights, read one tensor at a time."""

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

ADAPTER = "default"
"""PEFT's name for the one adapter of a model."""


class OutOfRange(UserError):
    """A type can't hold a weight."""


class StoredWeights(Mapping[str, torch.Tensor]):
    """The tensors of a model folder by name; each look reads one from its file and keeps nothing."""

    def __init__(self, folder: str | Path, quantised: Collection[str] | None = None, device: str = "cpu") -> None:
        """Reads the names.

        Args:
            folder: Folder with `model.safetensors`, or with shards and their index.
            quantised: Names of the weights to give as an adapter trained in 4 bit saw them: through NF4 and back, all
                others in bfloat16. None gives every weight as it is stored.
            device: Where to quantise.
        """
        self.folder, self.quantised, self.device = Path(folder), quantised, device
        self.files = _files(self.folder)

    def __getitem__(self, name: str) -> torch.Tensor:
        """Reads a tensor."""
        with safe_open(self.folder / self.files[name], framework="pt") as stored:
            tensor: torch.Tensor = stored.get_tensor(name)
        if self.quantised is None:
            return tensor
        return through_nf4(tensor, self.device) if name in self.quantised else tensor.to(torch.bfloat16)

    def __iter__(self) -> Iterator[str]:
        """Returns the names."""
        return iter(self.files)

    def __len__(self) -> int:
        """Returns the number of tensors."""
        return len(self.files)

    def types(self) -> Counter[str]:
        """Returns how many values are stored in each type, such as `bfloat16`, from the headers alone."""
        files = sorted(set(self.files.values()))
        headers = (parse_local_safetensors_file_metadata(self.folder / file) for file in files)
        return stored_types(pair for header in headers for pair in header.parameter_count.items())

    def sizes(self) -> dict[str, int]:
        """Returns the number of values of every tensor, from the files' headers alone."""
        found: dict[str, int] = {}
        for file in sorted(set(self.files.values())):
            with safe_open(self.folder / file, framework="pt") as stored:
                names = [name for name in stored.keys() if self.files.get(name) == file]  # noqa: SIM118 - no mapping
                found |= {name: _count(stored.get_slice(name).get_shape()) for name in names}
        return {name: found[name] for name in self.files}


def cast(name: str, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns a weight in another type.

    Args:
        name: Its name, for the message.
        values: Its values.
        dtype: The type.

    Raises:
        OutOfRange: If a finite value has no finite one in the type.
    """
    if values.dtype == dtype:
        return values
    converted = values.to(dtype)
    if not _finite(converted) and _finite(values):
        most, largest = torch.finfo(dtype).max, max(abs(float(bound)) for bound in values.aminmax())
        raise OutOfRange(f"{name} reaches {largest:,.0f}, and {str(dtype).removeprefix('torch.')} ends at {most:,.0f}")
    return converted


def _finite(values: torch.Tensor) -> bool:
    return all(bool(bound.isfinite()) for bound in values.aminmax())


def through_nf4(weight: torch.Tensor, device: str = "cpu") -> torch.Tensor:
    """Returns a weight as a layer that was quantised to NF4 holds it, bfloat16."""
    import bitsandbytes

    config = nf4_config()
    quantised: Any = bitsandbytes.nn.Params4bit(
        weight.to(torch.bfloat16),
        requires_grad=False,
        compress_statistics=config.bnb_4bit_use_double_quant,
        quant_type=config.bnb_4bit_quant_type,
    )
    quantised = quantised.to(device)
    plain: torch.Tensor = bitsandbytes.functional.dequantize_4bit(quantised.data, quantised.quant_state)
    return plain.to("cpu", torch.bfloat16)


def _files(folder: Path) -> dict[str, str]:
    if (folder / INDEX).is_file():
        index: dict[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return index
    if not (folder / SINGLE).is_file():
        raise UserError(f"{folder} holds neither {SINGLE} nor {INDEX}: its weights are missing")
    with safe_open(folder / SINGLE, framework="pt") as stored:
        return dict.fromkeys(stored.keys(), SINGLE)


def _count(shape: list[int]) -> int:
    values = 1
    for length in shape:
        values *= length
    return values
