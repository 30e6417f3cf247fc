"""Mixes several sources in fixed shares, without repeating a row."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from llm_finetune.components.data.load_dataset import sampling
from llm_finetune.components.data.load_dataset.settings import Member
from llm_finetune.components.data.sources.column_types import cast_batch, widen
from llm_finetune.components.data.sources.origins import check_column_names, type_name
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError, nearest

WriteRows = Callable[[Path, int], None]  # writes at most that many rows of a source (0: all) to a folder


def rows_per_source(available: list[int], weights: list[float], max_rows: int) -> list[int]:
    """Returns the rows of each source in the largest possible mixture with these shares.

    Shares are rounded to whole rows by the largest remainder method.

    Args:
        available: Rows of each source.
        weights: Weight of each source, above 0.
        max_rows: Maximum number of rows in total; 0 for no limit.
    """
    shares = np.array(weights) / sum(weights)
    # The tolerance compensates rounding errors: 3 rows at a share of 0.3 must give 10 in total, not 9.
    total = int(min(rows / share for rows, share in zip(available, shares, strict=True)) + 1e-9)
    total = min(total, max_rows) if max_rows else total
    exact = total * shares
    taken = np.floor(exact + 1e-9).astype(int)
    order = np.argsort(-(exact - taken), kind="stable")
    taken[order[: total - int(taken.sum())]] += 1
    return [min(rows, count) for rows, count in zip(available, taken.tolist(), strict=True)]


def max_rows_per_source(weights: list[float], max_rows: int) -> list[int]:
    """Returns the maximum rows of each source in a mixture of `max_rows` rows; 0 for all."""
    return [int(np.ceil(max_rows * weight / sum(weights))) for weight in weights]


class Mixture:
    """Sources, stored on disk until the rows to take from each are known."""

    def __init__(self, members: list[Member], source_column: str, folder: Path) -> None:
        """Stores the settings.

        Args:
            members: Settings of the sources.
            source_column: Column for the name of a row's source; empty for none.
            folder: Folder for temporary files.
        """
        self.members, self.source_column = members, source_column
        self.names = [member.label for member in members]
        self.folders = [folder / str(number) for number in range(len(members))]
        self.available: list[int] = []
        self.taken: list[int] = []

    def read(self, writers: list[WriteRows], max_samples: int, seed: int) -> Iterator[pa.RecordBatch]:
        """Writes all sources to disk, then mixes them.

        Args:
            writers: Function for each source that writes its rows to a folder.
            max_samples: Maximum number of rows in total; 0 for no limit.
            seed: Seed of the sample of each source; -1 takes the first rows.

        Yields:
            The rows, source by source, with the same columns.

        Raises:
            UserError: If the columns differ, or a source has too few rows for its share.
        """
        weights = [member.weight for member in self.members]
        limits = max_rows_per_source(weights, max_samples) if seed < 0 else [0] * len(weights)
        for write, folder, limit in zip(writers, self.folders, limits, strict=True):
            write(folder, limit)
        self.available = [tables.count_rows(folder) for folder in self.folders]
        self.taken = rows_per_source(self.available, weights, max_samples)
        empty = next((i for i, count in enumerate(self.taken) if not count), None)
        if empty is not None:
            raise UserError(
                f"the mixture has no room for a row of {self.names[empty]!r} at weight {weights[empty]:g}: the sources "
                f"have {', '.join(f'{rows:,}' for rows in self.available)} rows. Change the weights, or max_samples"
            )
        schema = self._schema()
        for number, folder in enumerate(self.folders):
            for batch in sampling.sample_rows(folder, self.taken[number], seed):
                yield self._add_source_column(self._select_columns(batch, number), number, schema)

    def _schema(self) -> pa.Schema:
        """Returns a schema that fits the rows of all sources."""
        schema: pa.Schema | None = None
        for number, folder in enumerate(self.folders):
            found = self._select_columns(tables.head(folder, 0), number).schema
            if schema is None:
                schema = found
                continue
            hint = f"mixture.{number} ({self.names[number]}), whose columns can be selected and renamed with `columns`,"
            check_column_names(found.names, schema.names, hint)
            wider = widen(schema, found)
            if wider is None:
                changed = next(field for field in schema if widen(pa.schema([field]), found) is None)
                raise UserError(
                    f"column {changed.name!r} of {self.names[number]!r} is {type_name(found.field(changed.name))}, but "
                    f"{type_name(changed)} in earlier sources. Use one type per column"
                )
            schema = wider
        assert schema is not None
        if self.source_column in schema.names:
            raise UserError(
                f"the rows already have a column {self.source_column!r}: set source_column to another name, or to ''"
            )
        return schema

    def _select_columns(self, rows: pa.RecordBatch | pa.Table, number: int) -> pa.RecordBatch | pa.Table:
        chosen = self.members[number].columns
        if not chosen:
            return rows
        for new, old in chosen.items():
            if old not in rows.schema.names:
                raise UserError(
                    f"mixture.{number}.columns.{new} = {old!r}: {self.names[number]!r} has no such column"
                    f"{nearest(old, rows.schema.names)} (columns: {', '.join(rows.schema.names)})"
                )
        return rows.select(list(chosen.values())).rename_columns(list(chosen))

    def _add_source_column(self, batch: pa.RecordBatch, number: int, schema: pa.Schema) -> pa.RecordBatch:
        batch = cast_batch(batch, schema)
        if not self.source_column:
            return batch
        label = pa.repeat(pa.scalar(self.names[number]), batch.num_rows)
        return batch.append_column(self.source_column, label)
