"""Decontamination: finds rows that share a word n-gram with an evaluation set.

GPT-3 uses 13-grams, compared in lower case and without punctuation as here (Brown et al. 2020, "Language Models are
Few-Shot Learners", appendix C). Tülu 3 (Lambert et al. 2024) uses 8-grams.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.data.filter_clean.settings import eval_set_source
from llm_finetune.components.data.load_dataset.settings import Settings as Source
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.rows.columns import as_text, is_text
from llm_finetune.components.shared.rows.duplicates import hash_texts, normalize_text

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class EvaluationSets:
    """Hashes of the word n-grams of evaluation sets, 8 bytes each."""

    def __init__(self, sets: Sequence[str | Mapping[str, object]], words: int) -> None:
        """Reads the sets.

        Args:
            sets: See `settings.eval_set_source`.
            words: Number of words per n-gram.

        Raises:
            UserError: If a set cannot be read, or none of its texts is long enough.
        """
        self.words = words
        self.ngrams = np.unique(np.concatenate([self._read(eval_set_source(each), each) for each in sets]))

    def _read(self, source: Source, named: object) -> np.ndarray:
        from llm_finetune.components.data.load_dataset.step import load_dataset

        with TemporaryDirectory() as scratch:
            folder = Path(scratch) / "rows"
            load_dataset(folder, Path(scratch) / "preview.html", source)
            found = [
                word_ngrams(texts, self.words)[0]
                for batch in tables.batches(folder)
                for column in batch.columns
                for texts in _texts(column)
            ]
        ngrams = np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint64)
        if not len(ngrams):
            raise UserError(
                f"eval_sets: no text of {named!r} has {self.words} words, so nothing can be compared; reduce eval_words"
            )
        return ngrams

    def overlaps(self, column: pa.StringArray) -> np.ndarray:
        """Returns which texts share an n-gram with an evaluation set.

        Args:
            column: Texts without null.

        Returns:
            Boolean array, shape [texts].
        """
        ngrams, row = word_ngrams(column, self.words)
        place = np.minimum(np.searchsorted(self.ngrams, ngrams), len(self.ngrams) - 1)
        found = np.zeros(len(column), bool)
        found[row[self.ngrams[place] == ngrams]] = True
        return found


def word_ngrams(column: pa.StringArray, words: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a hash of every word n-gram.

    `"The cat, the hat"` has the 3-grams `the cat the` and `cat the hat`.

    Args:
        column: Texts without null.
        words: Number of words per n-gram.

    Returns:
        The hashes (uint64), and for each the number of its text.
    """
    bare = pc.utf8_trim_whitespace(pc.replace_substring_regex(normalize_text(column), r"[^\pL\pN]+", " "))
    split = pc.split_pattern(bare, " ")
    row = pc.list_parent_indices(split).to_numpy(zero_copy_only=False)
    coded = pc.list_flatten(split).dictionary_encode()
    word = hash_texts(coded.dictionary)[:, 0][coded.indices.to_numpy(zero_copy_only=False)]
    count = max(len(word) - words + 1, 0)
    ngram = np.zeros(count, np.uint64)
    for i in range(words):
        ngram = ngram * _MULTIPLIER + word[i : i + count]
    within = row[:count] == row[words - 1 : words - 1 + count]
    return ngram[within], row[:count][within]


def _texts(column: pa.Array) -> Iterator[pa.StringArray]:
    """Yields the texts of a column, including those in lists and structs."""
    kind = column.type
    if is_text(kind):
        yield as_text(column).drop_null()
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from _texts(pc.list_flatten(column))
    elif pa.types.is_struct(kind):
        for part in kind:
            yield from _texts(pc.struct_field(column, part.name))
