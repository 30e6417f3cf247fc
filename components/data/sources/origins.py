"""Reads rows from a Hub dataset or from files, as record batches of one schema."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Protocol

import pyarrow as pa

from llm_finetune.components.data.sources import formats, hub, locations
from llm_finetune.components.data.sources.column_types import cast_batch, is_json_schema, json_kind, kind_of, widen
from llm_finetune.components.shared.errors import UserError, nearest


class Origin(Protocol):
    """A source of rows.

    Attributes:
        name: Name for messages and lineage.
        revision: Commit, checksum or ETag of what was read; set after reading, empty if there is none.
        license: License on the dataset card; empty if there is none.
        rows_by_file: Rows read from each file; set while reading.
    """

    name: str
    license: str
    rows_by_file: dict[str, int]

    @property
    def revision(self) -> str:
        """Commit, checksum or ETag of what was read."""
        ...

    def batches(self, schema: pa.Schema | None) -> Iterator[pa.RecordBatch]:
        """Reads the rows from the start.

        Args:
            schema: Columns and types that an earlier attempt found; None at first.

        Yields:
            Record batches. Each has the schema of the batch before, or a wider one.

        Raises:
            UserError: If the source is missing or damaged, or its rows have different columns.
        """
        ...


class HubSplit:
    """A split of a Hub dataset, at the current commit of its revision."""

    def __init__(self, dataset: str, config: str, split: str, revision: str) -> None:
        """Resolves the revision; see `hub.resolve`."""
        self._parts = (dataset, config, split)
        self.revision, self.license = hub.resolve(dataset, revision)
        self.name = " ".join(part for part in self._parts if part)
        self.rows_by_file: dict[str, int] = {}

    def batches(self, schema: pa.Schema | None) -> Iterator[pa.RecordBatch]:
        """Streams the split."""
        for batch in hub.stream_rows(*self._parts, self.revision):
            batch = conform(batch, schema or batch.schema, self.name)
            schema = batch.schema
            yield batch


class Files:
    """Files of any supported format, with the same columns."""

    license = ""

    def __init__(self, text: str, checksums: str) -> None:
        """Resolves the files.

        Args:
            text: See `locations.find_files`.
            checksums: SHA-256 of each file, separated by commas; empty for none.

        Raises:
            UserError: If the number of checksums is not the number of files.
        """
        self._files = locations.find_files(text)
        self._checksums = [part.strip() for part in checksums.split(",")] if checksums else [""] * len(self._files)
        if len(self._checksums) != len(self._files):
            raise UserError(
                f"sha256 has {len(self._checksums)} checksums for {len(self._files)} files; list one per file, in order"
            )
        self.name = locations.joint_name(self._files)
        self._names = unique_names([file.name for file in self._files])
        self._revisions: dict[str, str] = {}
        self.rows_by_file: dict[str, int] = {}

    @property
    def revision(self) -> str:
        """Revision of the file, or a hash over the revisions of all; empty if one is unknown."""
        return combined_revision(self._revisions)

    def batches(self, schema: pa.Schema | None) -> Iterator[pa.RecordBatch]:
        """Reads the files in order; see `Origin`."""
        self.rows_by_file, self._revisions = {}, {}
        for file, checksum, name in zip(self._files, self._checksums, self._names, strict=True):
            with ExitStack() as stack:
                source = stack.enter_context(file.downloaded(checksum)) if checksum else file
                self.rows_by_file[name] = 0
                for batch in formats.read_rows(source, schema if schema and is_json_schema(schema) else None):
                    batch = batch.replace_schema_metadata(None)
                    batch = conform(batch, schema or batch.schema, name)
                    schema = batch.schema
                    self.rows_by_file[name] += batch.num_rows
                    self._revisions[name] = source.revision
                    yield batch


def unique_names(names: list[str]) -> list[str]:
    """Numbers equal names: URLs that differ in their query alone have the same name."""
    return [f"{name} ({names[:i].count(name) + 1})" if name in names[:i] else name for i, name in enumerate(names)]


def combined_revision(revisions: dict[str, str]) -> str:
    """Returns the only revision, or a hash over several; empty if one is unknown."""
    if len(revisions) == 1 or not all(revisions.values()):
        return next(iter(revisions.values())) if len(revisions) == 1 else ""
    text = "".join(f"{name}\0{revision}\n" for name, revision in revisions.items())
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def conform(batch: pa.RecordBatch, schema: pa.Schema, name: str) -> pa.RecordBatch:
    """Casts rows to a common schema, which is widened if needed.

    Args:
        batch: Rows of one file.
        schema: Schema of the rows before.
        name: File name for error messages.

    Returns:
        The rows with that schema or a wider one.

    Raises:
        UserError: If the columns differ, or two types have no common type.
    """
    if batch.schema.equals(schema, check_metadata=True):
        return batch
    check_column_names(batch.schema.names, schema.names, name)
    wider = widen(schema, batch.schema)
    if wider is None:
        changed = next(field for field in schema if widen(pa.schema([field]), batch.schema) is None)
        raise UserError(
            f"{name}: column {changed.name!r} is {type_name(batch.schema.field(changed.name))} here, but "
            f"{type_name(changed)} in earlier rows. Use one type per column"
        )
    return cast_batch(batch, schema if wider.equals(schema) else wider)


def type_name(field: pa.Field) -> str:
    """Returns the type of a column, as used in error messages."""
    return kind_of(field) if json_kind(field) else str(field.type)


def check_column_names(found: list[str], wanted: list[str], name: str) -> None:
    """Raises if two sets of columns differ. The order does not matter."""
    extra = next((column for column in found if column not in wanted), None)
    if extra is not None:
        raise UserError(
            f"{name} has a column {extra!r} that earlier rows do not have{nearest(extra, wanted)} "
            f"(columns: {', '.join(wanted)})"
        )
    missing = next((column for column in wanted if column not in found), None)
    if missing is not None:
        raise UserError(
            f"{name} has no column {missing!r}, but earlier rows do{nearest(missing, found)} "
            f"(columns: {', '.join(found)})"
        )
