"""Facts about weights from the headers of their safetensors files, without reading a weight."""

import json
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_finetune.components.shared.errors import UserError

# Tables and masks that older checkpoints carry; no training changes them.
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
        dtype: Its type as the format spells it, such as `BF16`.
        shape: Its shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for extent in self.shape:
            size *= extent
        return size


def local_tensors(folder: Path, files: Iterable[str]) -> list[Tensor]:
    """Reads the headers of files in a folder.

    A file is a little-endian u64, the header's length; the header, JSON; then the weights, which are not read.
    """
    return [tensor for file in files for tensor in _local_header(folder / file)]


def count_parameters(tensors: Iterable[Tensor], tied: bool) -> int:
    """Returns the number of trainable parameters.

    Args:
        tensors: All tensors of the model.
        tied: Whether head and embedding are one tensor by configuration; a file that stores both is counted once.

    Returns:
        The sum of the tensors' sizes, without buffers.
    """
    sizes = {tensor.name: tensor.size for tensor in tensors if not BUFFERS.search(tensor.name)}
    head = next((name for name in HEADS if name in sizes), None)
    if tied and head and any(EMBEDDINGS.search(name) for name in sizes):
        del sizes[head]
    return sum(sizes.values())


def _local_header(path: Path) -> list[Tensor]:
    try:
        with path.open("rb") as stream:
            length = struct.unpack("<Q", stream.read(8))[0]
            if length > path.stat().st_size - 8:
                raise ValueError(f"its header claims {length} bytes, the file has {path.stat().st_size}")
            header: dict[str, Any] = json.loads(stream.read(length))
    except (ValueError, struct.error) as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}. Download it again") from error
    tensors = {name: info for name, info in header.items() if name != "__metadata__"}
    needed = 8 + length + max((info["data_offsets"][1] for info in tensors.values()), default=0)
    if path.stat().st_size != needed:
        raise UserError(
            f"{path} is not a whole safetensors file: it has {path.stat().st_size} bytes instead of {needed}. "
            "Download it again"
        )
    return [Tensor(name, info["dtype"], tuple(info["shape"])) for name, info in tensors.items()]
