"""Reads the headers of safetensors files: names, types and shapes of the weights, without the weights."""

import json
import math
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_finetune.components.shared.errors import UserError

# Tables and masks in older checkpoints, which are not parameters.
BUFFERS = re.compile(
    r"(rotary_emb\.inv_freq|attn\.masked_bias|\bh\.\d+\.attn\.bias|attention\.bias|attention\.masked_bias)$"
)
HEADS, EMBEDDINGS = (
    ("lm_head.weight", "embed_out.weight"),
    re.compile(r"(embed_tokens|wte|embed_in|word_embeddings)\.weight$"),
)


@dataclass(frozen=True)
class Tensor:
    """One tensor of a safetensors file.

    Attributes:
        name: Its name.
        dtype: Its type as the format names it, such as `BF16`.
        shape: Its shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_tensors(folder: Path, files: Iterable[str]) -> list[Tensor]:
    """Reads the headers of files in a folder.

    A file starts with the length of the header (little-endian u64) and the header (JSON); the weights follow.

    Args:
        folder: The folder.
        files: Names of the files.

    Returns:
        All tensors of the files.

    Raises:
        UserError: If a file is damaged or truncated.
    """
    return [tensor for file in files for tensor in _read_header(folder / file)]


def count_parameters(tensors: Iterable[Tensor], tied: bool) -> int:
    """Returns the number of trainable parameters.

    Args:
        tensors: All tensors of the model.
        tied: Whether the configuration ties head and embedding; if the files store both, they are counted once.

    Returns:
        The sum of the tensors' sizes, without buffers.
    """
    sizes = {tensor.name: tensor.size for tensor in tensors if not BUFFERS.search(tensor.name)}
    head = next((name for name in HEADS if name in sizes), None)
    if tied and head and any(EMBEDDINGS.search(name) for name in sizes):
        del sizes[head]
    return sum(sizes.values())


def _read_header(path: Path) -> list[Tensor]:
    try:
        with path.open("rb") as stream:
            length = struct.unpack("<Q", stream.read(8))[0]
            if length > path.stat().st_size - 8:
                raise ValueError(f"its header should have {length} bytes, but the file has {path.stat().st_size}")
            header: dict[str, dict[str, Any]] = json.loads(stream.read(length))
    except (ValueError, struct.error) as error:
        raise UserError(f"{path} is not a complete safetensors file: {error}. Download it again") from error
    tensors = {name: info for name, info in header.items() if name != "__metadata__"}
    needed = 8 + length + max((info["data_offsets"][1] for info in tensors.values()), default=0)
    if path.stat().st_size != needed:
        raise UserError(
            f"{path} is not a complete safetensors file: it has {path.stat().st_size} bytes instead of {needed}. "
            "Download it again"
        )
    return [Tensor(name, info["dtype"], tuple(info["shape"])) for name, info in tensors.items()]
