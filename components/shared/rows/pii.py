"""Counts and redacts personal data and secrets in text columns."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.shared.errors import UserError, nearest
from llm_finetune.components.shared.rows import pii_detectors
from llm_finetune.components.shared.rows.columns import as_text, is_text


class PersonalData:
    """Finds e-mail addresses, phone and card numbers, IBANs, IP addresses, keys and tokens."""

    def __init__(self, region: str = "US") -> None:
        """Compiles the detectors.

        Args:
            region: Country of phone numbers without a country code (ISO 3166, such as US).

        Raises:
            UserError: If the country is unknown.
        """
        known = pii_detectors.phone_regions()
        if region not in known:
            raise UserError(
                f"phone_region = {region!r} is not a known country{nearest(region, known)}; use the two letters of "
                "ISO 3166, such as US"
            )
        self._hints = pii_detectors.hint_pattern(region)
        self._detectors = pii_detectors.detectors(region)

    def redact(self, text: str, counts: Counter[str]) -> str:
        """Replaces personal data and secrets by their kind, such as `[EMAIL]`.

        Args:
            text: Any text.
            counts: Incremented by kind for each match.

        Returns:
            The redacted text.
        """
        for kind, detect in self._detectors.items():
            parts, end = [], 0
            for start, stop in sorted(detect(text)):
                if stop <= end:
                    continue
                counts[kind] += 1
                parts += [text[end : max(start, end)], f"[{kind.upper()}]"]
                end = stop
            text = "".join([*parts, text[end:]]) if parts else text
        return text

    def count(self, column: pa.StringArray) -> Counter[str]:
        """Counts personal data and secrets in a text column, by kind."""
        return sum((counts for counts, _ in self.find(column)), Counter[str]())

    def find(self, column: pa.StringArray) -> Iterator[tuple[Counter[str], str]]:
        """Yields the counts by kind and the redacted text, for each text with a match."""
        for text in column.filter(self._suspicious(column)).to_pylist():
            counts: Counter[str] = Counter()
            redacted = self.redact(text, counts)
            if counts:
                yield counts, redacted

    def redact_batch(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Redacts all texts of a batch, including those in lists and structs.

        Args:
            batch: Any rows.

        Returns:
            Rows with the same columns; all text types become string.

        Raises:
            UserError: If a column's type is not supported.
        """
        named = zip(batch.schema.names, batch.columns, strict=True)
        columns = [self._redact_column(column, name) for name, column in named]
        return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)

    def _redact_column(self, column: pa.Array, name: str) -> pa.Array:
        kind = column.type
        if is_text(kind):
            return self._redact_strings(as_text(column))
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
            offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
            flat = self._redact_column(pc.list_flatten(column), name)
            return pa.ListArray.from_arrays(offsets, flat, mask=column.is_null())
        if pa.types.is_struct(kind):
            parts = [self._redact_column(pc.struct_field(column, part.name), name) for part in kind]
            return pa.StructArray.from_arrays(parts, names=[part.name for part in kind], mask=column.is_null())
        if pa.types.is_nested(kind) or pa.types.is_dictionary(kind):
            raise UserError(
                f"pii = 'redact' does not support column {name!r} of type {kind}; remove the column from the data"
            )
        return column

    def _redact_strings(self, column: pa.StringArray) -> pa.StringArray:
        hits = self._suspicious(column)
        if not pc.any(hits).as_py():
            return column
        counts: Counter[str] = Counter()
        clean = pa.array([self.redact(text, counts) for text in column.filter(hits).to_pylist()], pa.string())
        return pc.replace_with_mask(column, hits, clean)

    def _suspicious(self, column: pa.StringArray) -> pa.BooleanArray:
        return pc.match_substring_regex(column, self._hints).fill_null(False)
