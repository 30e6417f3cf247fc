"""Data types of stored weights."""

from collections import Counter
from collections.abc import Iterable

# https://huggingface.co/docs/safetensors/index#format
TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def stored_types(tensors: Iterable[tuple[str, int]]) -> Counter[str]:
    """Counts stored values by data type.

    Args:
        tensors: Pairs of a data type as the safetensors format names it, such as `BF16`, and a number of values.

    Returns:
        Number of values by torch's name of the type, such as `bfloat16`; other types in lower case.
    """
    counts: Counter[str] = Counter()
    for stored, values in tensors:
        counts[TORCH_NAMES.get(stored, stored.lower())] += values
    return counts
