"""Several sources in fixed shares: as many rows as the shares allow, no row twice."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from llm_finetune.components.data.load_dataset import sampling
from llm_finetune.components.data.load_dataset.settings import Member
from llm_finetune.components.data.sources.origins import check_names, shown
from llm_finetune.components.data.sources.types import fit, widened
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError, nearest

Keep = Callable[[Path, int], None]  # writes the rows of a member, so many at most (0: all), to a folder


def counts(available: list[int], weights: list[float], most: int) -> list[int]:
    """Returns how many rows of each source make the largest mixture with these shares.

    Shares are met as nearly as whole rows allow (largest remainder).

    Args:
        available: Rows of each source.
        weights: Weight of each, above 0.
        most: Rows in all at most; 0 for no limit.
    """
    shares = np.array(weights) / sum(weights)
    # A row is no more than rounding: 3 of 10 rows at a share of 0.3 must give 10 in all, not 9.
    total = int(min(rows / share for rows, share in zip(available, shares, strict=True)) + 1e-9)
    total = min(total, most) if most else total
    exact = total * shares
    taken = np.floor(exact + 1e-9).astype(int)
    order = np.argsort(-(exact - taken), kind="stable")
    taken[order[: total - int(taken.sum())]] += 1
    return [min(rows, count) for rows, count in zip(available, taken.tolist(), strict=True)]


def most_rows(weights: list[float], most: int) -> list[int]:
    """Returns how many rows of each source a mixture of `most` rows can need; 0 for all."""
    return [int(np.ceil(most * weight / sum(weights))) for weight in weights]


class Mixture:
    """Sources that are kept on disk until it is known how many rows of each are taken."""

    def __init__(self, members: list[Member], source_column: str, folder: Path) -> None:
        """Names the sources.

        Args:
            members: Their settings.
            source_column: Column that says where a row is from; empty for none.
            folder: A place on disk.
        """
        self.members, self.source_column = members, source_column
        self.names = [member.label for member in members]
        self.folders = [folder / str(number) for number in range(len(members))]
        self.available: list[int] = []
        self.taken: list[int] = []

    def read(self, keep: list[Keep], max_samples: int, seed: int) -> Iterator[pa.RecordBatch]:
        """Keeps all sources, then mixes them.

        Args:
            keep: How to read each.
            max_samples: Rows in all at most; 0 for no limit.
            seed: Seed of the choice in each source; -1 takes the first rows.

        Yields:
            The rows of one source after the other, with the same columns.

        Raises:
            UserError: If the columns differ, or a source is too small for its share.
        """
        weights = [member.weight for member in self.members]
        limits = most_rows(weights, max_samples) if seed < 0 else [0] * len(weights)
        for write, folder, limit in zip(keep, self.folders, limits, strict=True):
            write(folder, limit)
        self.available = [tables.count_rows(folder) for folder in self.folders]
        self.taken = counts(self.available, weights, max_samples)
        empty = next((i for i, count in enumerate(self.taken) if not count), None)
        if empty is not None:
            raise UserError(
                f"no row of {self.names[empty]!r} fits into the mixture at weight {weights[empty]:g}: the sources "
                f"have {', '.join(f'{rows:,}' for rows in self.available)} rows. Change the weights, or max_samples"
            )
        schema = self._schema()
        for number, folder in enumerate(self.folders):
            for batch in sampling.chosen(folder, self.taken[number], seed):
                yield self._labelled(self._renamed(batch, number), number, schema)

    def _schema(self) -> pa.Schema:
        """Returns the columns and types that the rows of all sources fit."""
        schema: pa.Schema | None = None
        for number, folder in enumerate(self.folders):
            found = self._renamed(tables.head(folder, 0), number).schema
            if schema is None:
                schema = found
                continue
            hint = f"mixture.{number} ({self.names[number]}), whose columns can be chosen and renamed with `columns`,"
            check_names(found.names, schema.names, hint)
            wider = widened(schema, found)
            if wider is None:
                changed = next(field for field in schema if widened(pa.schema([field]), found) is None)
                raise UserError(
                    f"column {changed.name!r} of {self.names[number]!r} is {shown(found.field(changed.name))}, and "
                    f"{shown(changed)} in the sources before. Give a column one type"
                )
            schema = wider
        assert schema is not None
        if self.source_column in schema.names:
            raise UserError(
                f"the rows already have a column {self.source_column!r}: name another one with source_column, or none"
            )
        return schema

    def _renamed(self, rows: pa.RecordBatch | pa.Table, number: int) -> pa.RecordBatch | pa.Table:
        chosen = self.members[number].columns
        if not chosen:
            return rows
        for new, old in chosen.items():
            if old not in rows.schema.names:
                raise UserError(
                    f"mixture.{number}.columns.{new} = {old!r}: no row of {self.names[number]!r} has it"
                    f"{nearest(old, rows.schema.names)} (columns: {', '.join(rows.schema.names)})"
                )
        return rows.select(list(chosen.values())).rename_columns(list(chosen))

    def _labelled(self, batch: pa.RecordBatch, number: int, schema: pa.Schema) -> pa.RecordBatch:
        batch = fit(batch, schema)
        if not self.source_column:
            return batch
        label = pa.repeat(pa.scalar(self.names[number]), batch.num_rows)
        return batch.append_column(self.source_column, label)
