"""Decontamination: rows that share a run of words with an evaluation set.

A run of 13 words is what GPT-3's authors took for contamination (Brown et al. 2020, "Language Models are Few-Shot
Learners", appendix C), compared, as here, in lower case and without punctuation. Tülu 3 (Lambert et al. 2024) looks at
runs of 8.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.data.filter_clean.settings import source_of
from llm_finetune.components.data.load_dataset.settings import Settings as Source
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.rows.columns import as_text, is_text
from llm_finetune.components.shared.rows.duplicates import hashes, normalised

_STEP = np.uint64(0x9E3779B97F4A7C15)


class EvaluationSets:
    """The runs of words of evaluation sets, 8 bytes each."""

    def __init__(self, named: Sequence[str | Mapping[str, Any]], words: int) -> None:
        """Reads the sets.

        Args:
            named: See `settings.source_of`.
            words: Length of a run.

        Raises:
            UserError: If a set can't be read, or none of its texts is long enough.
        """
        self.words = words
        runs = [self._read(source_of(name), name) for name in named]
        self.runs = np.unique(np.concatenate(runs))

    def _read(self, source: Source, name: Any) -> np.ndarray:
        from llm_finetune.components.data.load_dataset.step import load_dataset

        with TemporaryDirectory() as scratch:
            folder = Path(scratch) / "rows"
            load_dataset(folder, Path(scratch) / "preview.html", source)
            found = [
                runs_of_words(texts, self.words)[0]
                for batch in tables.batches(folder)
                for column in batch.columns
                for texts in _texts(column)
            ]
        runs = np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint64)
        if not len(runs):
            raise UserError(
                f"eval_sets: no text of {name!r} has {self.words} words, so nothing can be compared; lower eval_words"
            )
        return runs

    def found_in(self, column: pa.StringArray) -> np.ndarray:
        """Tells which texts share a run of words with an evaluation set.

        Args:
            column: Texts without null.

        Returns:
            True per text that does.
        """
        runs, row = runs_of_words(column, self.words)
        place = np.minimum(np.searchsorted(self.runs, runs), len(self.runs) - 1)
        found = np.zeros(len(column), bool)
        found[row[self.runs[place] == runs]] = True
        return found


def runs_of_words(column: pa.StringArray, words: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a hash of every run of so many words.

    `"The cat, the hat"` has the runs `the cat the` and `cat the hat` of three words.

    Args:
        column: Texts without null.
        words: Length of a run.

    Returns:
        The hashes (uint64), and the number of the text that each is from.
    """
    bare = pc.utf8_trim_whitespace(pc.replace_substring_regex(normalised(column), r"[^\pL\pN]+", " "))
    split = pc.split_pattern(bare, " ")
    row = pc.list_parent_indices(split).to_numpy(zero_copy_only=False)
    coded = pc.list_flatten(split).dictionary_encode()
    word = hashes(coded.dictionary)[:, 0][coded.indices.to_numpy(zero_copy_only=False)]
    count = max(len(word) - words + 1, 0)
    run = np.zeros(count, np.uint64)
    for i in range(words):
        run = run * _STEP + word[i : i + count]
    within = row[:count] == row[words - 1 : words - 1 + count]
    return run[within], row[:count][within]


def _texts(column: pa.Array) -> Iterator[pa.StringArray]:
    """Yields the texts of a column, those in lists and structures too."""
    kind = column.type
    if is_text(kind):
        yield as_text(column).drop_null()
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from _texts(pc.list_flatten(column))
    elif pa.types.is_struct(kind):
        for part in kind:
            yield from _texts(pc.struct_field(column, part.name))
