"""Keep a row, or drop it with a reason."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.data.filter_clean.contamination import EvaluationSets
from llm_finetune.components.data.filter_clean.settings import Settings
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.rows.duplicates import NearDuplicates, SeenHashes, Sketch, hashes, normalised
from llm_finetune.components.shared.rows.language import check_codes, languages
from llm_finetune.components.shared.rows.text import Texts

# The first reason that holds is the one that is counted: the cheapest to find first.
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
# An index entry takes about 2 KB and a millisecond per row.
NEAR_ROWS = 1_000_000
SHOWN_PAIRS = 5


@dataclass(frozen=True)
class Pair:
    """A row that was dropped and the one that it is nearly the same as.

    Attributes:
        kept: Normalised text of the row that stays.
        dropped: That of the other.
        similarity: Share of common text.
    """

    kept: str
    dropped: str
    similarity: float


class Judge:
    """Decides row by row, in order; of duplicates the first stays."""

    def __init__(self, settings: Settings) -> None:
        """Takes the limits, and reads the evaluation sets.

        Args:
            settings: The card's settings.

        Raises:
            UserError: If a language is unknown or an evaluation set can't be read.
        """
        self.settings = settings
        self.languages = settings.language_codes
        if self.languages:
            check_codes(self.languages)
        self.evaluations = EvaluationSets(settings.eval_sets, settings.eval_words) if settings.eval_sets else None
        self.seen = SeenHashes() if settings.dedup != "none" else None
        self.near = NearDuplicates(settings.near_threshold) if settings.dedup == "near" else None
        self.near_rows = 0
        self.pairs: list[Pair] = []

    def reasons(self, texts: Texts, lengths: np.ndarray, bad_conversation: np.ndarray | None) -> np.ndarray:
        """Returns for each row -1 to keep it or the number of its reason in `REASONS`.

        Args:
            texts: The batch's text.
            lengths: Its characters per row.
            bad_conversation: True where a chat template can't render the row; None for rows that are no conversations.
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
            kept, whole = _kept(reason, texts.whole())
            reason[kept[self.seen.add(hashes(normalised(whole)))]] = REASONS.index("duplicate")
        if self.languages:
            kept, own = _kept(reason, texts.own())
            foreign = [language not in (*self.languages, "und") for language in languages(own)]
            reason[kept[np.array(foreign, bool)]] = REASONS.index("language")
        if self.evaluations is not None:
            kept, whole = _kept(reason, texts.whole())
            reason[kept[self.evaluations.found_in(whole)]] = REASONS.index("contaminated")
        if self.near is not None:
            self._drop_near(self.near, texts, reason)
        return reason

    def _drop_near(self, near: NearDuplicates, texts: Texts, reason: np.ndarray) -> None:
        kept, own = _kept(reason, texts.own())
        for row, sketch in zip(kept, near.signatures(normalised(own)), strict=True):
            alike = near.similar(sketch, near.threshold)
            if alike:
                reason[row] = REASONS.index("near_duplicate")
                self._remember(near, sketch, *max(alike, key=lambda found: found[1]))
                continue
            self.near_rows += 1
            if self.near_rows > NEAR_ROWS:
                raise UserError(
                    f"dedup = 'near' compares up to {NEAR_ROWS:,} rows; more would not fit into memory. "
                    "Use dedup = 'exact', or fewer rows"
                )
            near.insert(self.near_rows, sketch)

    def _remember(self, near: NearDuplicates, sketch: Sketch, row: int, similarity: float) -> None:
        if len(self.pairs) < SHOWN_PAIRS:
            self.pairs.append(Pair(near.text(row), sketch.text.decode(), similarity))


def _kept(reason: np.ndarray, column: pa.StringArray) -> tuple[np.ndarray, pa.StringArray]:
    """Returns the places of the rows that are still kept, and their texts."""
    kept = np.flatnonzero(reason < 0)
    return kept, column if len(kept) == len(column) else column.take(pa.array(kept))
