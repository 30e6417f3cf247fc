"""Personal data and secrets in columns of text: counted, or replaced by what they are."""

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
        """Prepares the search.

        Args:
            region: Country whose phone numbers may stand without a country code (ISO 3166, such as US).

        Raises:
            UserError: If there is no such country.
        """
        known = pii_detectors.regions()
        if region not in known:
            raise UserError(
                f"phone_region = {region!r} is no country with phone numbers{nearest(region, known)}; "
                "give its two letters of ISO 3166, such as US"
            )
        self._hints = pii_detectors.hints(region)
        self._finders = pii_detectors.finders(region)

    def redacted(self, text: str, counts: Counter[str]) -> str:
        """Replaces what is found by what it is, such as `[EMAIL]`.

        Args:
            text: Any text.
            counts: Gets one more under its kind for each thing found.

        Returns:
            The text without it.
        """
        for kind, find in self._finders.items():
            parts, end = [], 0
            for start, stop in sorted(find(text)):
                if stop <= end:
                    continue
                counts[kind] += 1
                parts += [text[end : max(start, end)], f"[{kind.upper()}]"]
                end = stop
            text = "".join([*parts, text[end:]]) if parts else text
        return text

    def count(self, column: pa.StringArray) -> Counter[str]:
        """Counts what is found in a column of text, by kind."""
        return sum((counts for counts, _ in self.found_in(column)), Counter[str]())

    def found_in(self, column: pa.StringArray) -> Iterator[tuple[Counter[str], str]]:
        """Yields, for each text in which something is found, how much by kind, and the text without it."""
        for text in column.filter(self._suspicious(column)).to_pylist():
            counts: Counter[str] = Counter()
            redacted = self.redacted(text, counts)
            if counts:
                yield counts, redacted

    def redacted_batch(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Replaces what is found in every text of a batch, in lists and structures too.

        Args:
            batch: Any rows.

        Returns:
            Rows of the same columns; every layout of text becomes plain strings.

        Raises:
            UserError: If a column's type can't be searched.
        """
        named = zip(batch.schema.names, batch.columns, strict=True)
        columns = [self._redacted_column(column, name) for name, column in named]
        return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)

    def _redacted_column(self, column: pa.Array, name: str) -> pa.Array:
        kind = column.type
        if is_text(kind):
            return self._redacted_strings(as_text(column))
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
            offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
            flat = self._redacted_column(pc.list_flatten(column), name)
            return pa.ListArray.from_arrays(offsets, flat, mask=column.is_null())
        if pa.types.is_struct(kind):
            parts = [self._redacted_column(pc.struct_field(column, part.name), name) for part in kind]
            return pa.StructArray.from_arrays(parts, names=[part.name for part in kind], mask=column.is_null())
        if pa.types.is_nested(kind) or pa.types.is_dictionary(kind):
            raise UserError(
                f"pii = 'redact' can't search column {name!r} of type {kind}; leave the column out of the data"
            )
        return column

    def _redacted_strings(self, column: pa.StringArray) -> pa.StringArray:
        hits = self._suspicious(column)
        if not pc.any(hits).as_py():
            return column
        counts: Counter[str] = Counter()
        clean = pa.array([self.redacted(text, counts) for text in column.filter(hits).to_pylist()], pa.string())
        return pc.replace_with_mask(column, hits, clean)

    def _suspicious(self, column: pa.StringArray) -> pa.BooleanArray:
        return pc.match_substring_regex(column, self._hints).fill_null(False)
