"""Where rows come from: a split on the Hub, or files; both give record batches of one schema."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Protocol

import pyarrow as pa

from llm_finetune.components.data.sources import formats, hub, locations
from llm_finetune.components.data.sources.types import fit, held_kind, is_json, kind_of, widened
from llm_finetune.components.shared.errors import UserError, nearest


class Origin(Protocol):
    """Rows of one place.

    Attributes:
        name: The place, for messages and lineage.
        revision: What of it was read, known afterwards: commit, checksum or ETag; empty where there is none.
        license: As the Hub names it; empty where nothing does.
        rows_by_file: Rows read of each file, once they were.
    """

    name: str
    license: str
    rows_by_file: dict[str, int]

    @property
    def revision(self) -> str:
        """See the attributes."""
        ...

    def batches(self, schema: pa.Schema | None) -> Iterator[pa.RecordBatch]:
        """Reads the rows from the beginning.

        Args:
            schema: Columns and types that they need, as an earlier attempt found; None at first.

        Yields:
            Record batches, each of the schema before or of a wider one.

        Raises:
            UserError: If the source is missing, damaged, or its rows do not have the same columns.
        """
        ...


class HubSplit:
    """A split of a dataset on the Hub, at the commit that its revision means now."""

    def __init__(self, dataset: str, config: str, split: str, revision: str) -> None:
        """Resolves the revision; see `hub.resolved`."""
        self._parts = (dataset, config, split)
        self.revision, self.license = hub.resolved(dataset, revision)
        self.name = " ".join(part for part in self._parts if part)
        self.rows_by_file: dict[str, int] = {}

    def batches(self, schema: pa.Schema | None) -> Iterator[pa.RecordBatch]:
        """Streams the split."""
        for batch in hub.rows(*self._parts, self.revision):
            batch = fitted(batch, schema or batch.schema, self.name)
            schema = batch.schema
            yield batch


class Files:
    """Files of any known format, one after the other, all with the same columns."""

    license = ""

    def __init__(self, text: str, checksums: str) -> None:
        """Finds the files.

        Args:
            text: As `locations.files` takes it.
            checksums: SHA-256 of each file, with commas between them; empty for none.

        Raises:
            UserError: If there are not as many checksums as files.
        """
        self._files = locations.files(text)
        self._checksums = [part.strip() for part in checksums.split(",")] if checksums else [""] * len(self._files)
        if len(self._checksums) != len(self._files):
            raise UserError(
                f"sha256 has {len(self._checksums)} checksums for {len(self._files)} files; give one for each, in order"
            )
        self.name = locations.name(self._files)
        self._names = distinct([file.name for file in self._files])
        self._revisions: dict[str, str] = {}
        self.rows_by_file: dict[str, int] = {}

    @property
    def revision(self) -> str:
        """That of the one file, or a hash over those of all; empty if one has none."""
        return combined(self._revisions)

    def batches(self, schema: pa.Schema | None) -> Iterator[pa.RecordBatch]:
        """Reads the files in order; see `Origin`."""
        self.rows_by_file, self._revisions = {}, {}
        for file, checksum, name in zip(self._files, self._checksums, self._names, strict=True):
            with ExitStack() as stack:
                source = stack.enter_context(file.fetched(checksum)) if checksum else file
                self.rows_by_file[name] = 0
                for batch in formats.rows(source, schema if schema and is_json(schema) else None):
                    batch = batch.replace_schema_metadata(None)
                    batch = fitted(batch, schema or batch.schema, name)
                    schema = batch.schema
                    self.rows_by_file[name] += batch.num_rows
                    self._revisions[name] = source.revision
                    yield batch


def distinct(names: list[str]) -> list[str]:
    """Returns names that differ: those of two URLs are the same without the query that tells them apart."""
    return [f"{name} ({names[:i].count(name) + 1})" if name in names[:i] else name for i, name in enumerate(names)]


def combined(revisions: dict[str, str]) -> str:
    """Returns the revision of one place, or a hash over those of several; empty if one has none."""
    if len(revisions) == 1 or not all(revisions.values()):
        return next(iter(revisions.values())) if len(revisions) == 1 else ""
    text = "".join(f"{name}\0{revision}\n" for name, revision in revisions.items())
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def fitted(batch: pa.RecordBatch, schema: pa.Schema, name: str) -> pa.RecordBatch:
    """Brings rows into the columns and types that all rows have.

    Args:
        batch: Rows of one file.
        schema: What the files before have.
        name: The file, for messages.

    Returns:
        The rows with that schema, or a wider one where they need it.

    Raises:
        UserError: If the columns differ, or a type can't be brought into line.
    """
    if batch.schema.equals(schema, check_metadata=True):
        return batch
    check_names(batch.schema.names, schema.names, name)
    wider = widened(schema, batch.schema)
    if wider is None:
        changed = next(field for field in schema if widened(pa.schema([field]), batch.schema) is None)
        raise UserError(
            f"{name}: column {changed.name!r} is {shown(batch.schema.field(changed.name))} here and {shown(changed)} "
            "in the rows before. Give a column one type"
        )
    return fit(batch, schema if wider.equals(schema) else wider)


def shown(field: pa.Field) -> str:
    """Returns the type of a column for messages."""
    return kind_of(field) if held_kind(field) else str(field.type)


def check_names(found: list[str], wanted: list[str], name: str) -> None:
    """Raises where columns are not the same, in whatever order."""
    strange = next((column for column in found if column not in wanted), None)
    if strange is not None:
        raise UserError(
            f"{name} has a column {strange!r} that the rows before do not have{nearest(strange, wanted)} "
            f"(columns: {', '.join(wanted)})"
        )
    missing = next((column for column in wanted if column not in found), None)
    if missing is not None:
        raise UserError(
            f"{name} has no column {missing!r}, the rows before have{nearest(missing, found)} "
            f"(columns: {', '.join(found)})"
        )
