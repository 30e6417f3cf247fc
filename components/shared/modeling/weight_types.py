"""Types that weights are stored in."""

from collections import Counter
from collections.abc import Iterable

# https://huggingface.co/docs/safetensors/index#format
NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def stored_types(values: Iterable[tuple[str, int]]) -> Counter[str]:
    """Counts values by type.

    Args:
        values: Pairs of a type as safetensors files spell it, such as `BF16`, and a number of values.

    Returns:
        The number of values by the type's name in torch, such as `bfloat16`; other types in lower case.
    """
    found: Counter[str] = Counter()
    for stored, count in values:
        found[NAMES.get(stored, stored.lower())] += count
    return found
