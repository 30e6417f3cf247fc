"""Keep a row, or drop it with a reason."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.shared.duplicates import NearDuplicates, SeenHashes, hashes, normalised
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.text import Texts

# The first reason that holds is the one that is counted.
REASONS = ("missing_output", "bad_conversation", "too_short", "too_long", "duplicate", "near_duplicate")
# An index entry takes about 3 KB and a millisecond per row.
NEAR_ROWS = 1_000_000


class Judge:
    """Decides row by row, in order; of duplicates the first stays."""

    def __init__(
        self, min_chars: int, max_chars: int, drop_if_missing_output: bool, dedup: str, near_threshold: float
    ) -> None:
        """Takes the limits; see the card's settings."""
        self.min_chars, self.max_chars, self.drop_if_missing_output = min_chars, max_chars, drop_if_missing_output
        self.seen = SeenHashes() if dedup != "none" else None
        self.near = NearDuplicates(near_threshold) if dedup == "near" else None
        self.near_rows = 0

    def reasons(self, texts: Texts, lengths: np.ndarray, bad_conversation: np.ndarray | None) -> np.ndarray:
        """Returns for each row -1 to keep it or the number of its reason in `REASONS`.

        Args:
            texts: The batch's text.
            lengths: Its characters per row.
            bad_conversation: True where a chat template can't render the row; None for rows that are no conversations.
        """
        reason = np.full(len(lengths), -1, np.int8)
        if self.max_chars:
            reason[lengths > self.max_chars] = REASONS.index("too_long")
        reason[lengths < self.min_chars] = REASONS.index("too_short")
        if bad_conversation is not None:
            reason[bad_conversation] = REASONS.index("bad_conversation")
        if self.drop_if_missing_output:
            missing = pc.equal(texts.output, "").to_numpy(zero_copy_only=False)
            reason[missing] = REASONS.index("missing_output")
        if self.seen is not None:
            kept = np.flatnonzero(reason < 0)
            whole = texts.whole()
            again = self.seen.add(hashes(normalised(whole if len(kept) == len(whole) else whole.take(pa.array(kept)))))
            reason[kept[again]] = REASONS.index("duplicate")
        if self.near is not None:
            self._drop_near(texts, reason)
        return reason

    def _drop_near(self, texts: Texts, reason: np.ndarray) -> None:
        assert self.near is not None
        kept = np.flatnonzero(reason < 0)
        for row, sketch in zip(kept, self.near.signatures(normalised(texts.own().take(pa.array(kept)))), strict=True):
            if self.near.similar(sketch, self.near.threshold):
                reason[row] = REASONS.index("near_duplicate")
                continue
            self.near_rows += 1
            if self.near_rows > NEAR_ROWS:
                raise UserError(
                    f"dedup = 'near' compares up to {NEAR_ROWS:,} rows; more would not fit into memory. "
                    "Use dedup = 'exact', or fewer rows"
                )
            self.near.insert(self.near_rows, sketch)
