"""Decides for each row whether to keep it, or drop it with a reason."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.data.filter_clean.contamination import EvaluationSets
from llm_finetune.components.data.filter_clean.settings import Settings
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.rows.duplicates import (
    NearDuplicates,
    SeenHashes,
    Sketch,
    hash_texts,
    normalize_text,
)
from llm_finetune.components.shared.rows.language import check_language_codes, detect_languages
from llm_finetune.components.shared.rows.text import Texts

# The first reason that applies is counted; the cheapest checks come first.
REASONS = (
    "missing_output",
    "bad_conversation",
    "too_short",
    "too_long",
    "duplicate",
    "language",
    "contaminated",
    "near_duplicate",
)
# The index takes about 2 KB and a millisecond per row.
MAX_NEAR_ROWS = 1_000_000
SHOWN_PAIRS = 5


@dataclass(frozen=True)
class NearPair:
    """A dropped near-duplicate and the row that was kept.

    Attributes:
        kept: Normalized text of the kept row.
        dropped: Normalized text of the dropped row.
        similarity: Jaccard similarity of the two.
    """

    kept: str
    dropped: str
    similarity: float


class RowFilter:
    """Filters rows in order; the first of several duplicates is kept."""

    def __init__(self, settings: Settings) -> None:
        """Stores the settings and reads the evaluation sets.

        Args:
            settings: The card's settings.

        Raises:
            UserError: If a language is unknown or an evaluation set cannot be read.
        """
        self.settings = settings
        self.languages = settings.language_codes
        if self.languages:
            check_language_codes(self.languages)
        self.evaluations = EvaluationSets(settings.eval_sets, settings.eval_words) if settings.eval_sets else None
        self.seen = SeenHashes() if settings.dedup != "none" else None
        self.near = NearDuplicates(settings.near_threshold) if settings.dedup == "near" else None
        self.near_rows = 0
        self.pairs: list[NearPair] = []

    def drop_reasons(self, texts: Texts, lengths: np.ndarray, bad_conversation: np.ndarray | None) -> np.ndarray:
        """Returns for each row -1 to keep it, or the index of the reason in `REASONS`.

        Args:
            texts: Text of the batch.
            lengths: Number of characters of each row.
            bad_conversation: True for conversations that a chat template cannot render; None for other layouts.
        """
        reason = np.full(len(lengths), -1, np.int8)
        if self.settings.max_chars:
            reason[lengths > self.settings.max_chars] = REASONS.index("too_long")
        reason[lengths < self.settings.min_chars] = REASONS.index("too_short")
        if bad_conversation is not None:
            reason[bad_conversation] = REASONS.index("bad_conversation")
        if self.settings.drop_if_missing_output:
            missing = pc.equal(texts.output, "").to_numpy(zero_copy_only=False)
            reason[missing] = REASONS.index("missing_output")
        if self.seen is not None:
            kept, whole = _kept(reason, texts.full_text())
            reason[kept[self.seen.add(hash_texts(normalize_text(whole)))]] = REASONS.index("duplicate")
        if self.languages:
            kept, own = _kept(reason, texts.distinctive_text())
            foreign = [language not in (*self.languages, "und") for language in detect_languages(own)]
            reason[kept[np.array(foreign, bool)]] = REASONS.index("language")
        if self.evaluations is not None:
            kept, whole = _kept(reason, texts.full_text())
            reason[kept[self.evaluations.overlaps(whole)]] = REASONS.index("contaminated")
        if self.near is not None:
            self._drop_near(self.near, texts, reason)
        return reason

    def _drop_near(self, near: NearDuplicates, texts: Texts, reason: np.ndarray) -> None:
        kept, own = _kept(reason, texts.distinctive_text())
        for row, sketch in zip(kept, near.sketches(normalize_text(own)), strict=True):
            similar = near.similar(sketch, near.threshold)
            if similar:
                reason[row] = REASONS.index("near_duplicate")
                self._add_pair(near, sketch, *max(similar, key=lambda found: found[1]))
                continue
            self.near_rows += 1
            if self.near_rows > MAX_NEAR_ROWS:
                raise UserError(
                    f"dedup = 'near' supports up to {MAX_NEAR_ROWS:,} rows because of its memory use. "
                    "Use dedup = 'exact', or fewer rows"
                )
            near.insert(self.near_rows, sketch)

    def _add_pair(self, near: NearDuplicates, sketch: Sketch, row: int, similarity: float) -> None:
        if len(self.pairs) < SHOWN_PAIRS:
            self.pairs.append(NearPair(near.text(row), sketch.text.decode(), similarity))


def _kept(reason: np.ndarray, column: pa.StringArray) -> tuple[np.ndarray, pa.StringArray]:
    """Returns the indices and texts of the rows that are not dropped yet."""
    kept = np.flatnonzero(reason < 0)
    return kept, column if len(kept) == len(column) else column.take(pa.array(kept))
