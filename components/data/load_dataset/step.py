"""Reads a dataset from the Hub, a URL or a path into Parquet shards."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from llm_finetune.components.data.load_dataset import formats, hub, sampling
from llm_finetune.components.data.load_dataset.columns import TypesWidened
from llm_finetune.components.data.load_dataset.settings import Settings
from llm_finetune.components.data.load_dataset.sources import Source
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import content_hash
from llm_finetune.components.shared.pages import write_page

SHOWN_ROWS = 20
SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Facts:
    """What was loaded.

    Attributes:
        rows: Number of rows.
        columns: Names of the columns.
        source: Where they come from.
        revision: The Hub's commit, the file's checksum or its ETag; empty where there is none.
        content_hash: Hash of the written files.
    """

    rows: int
    columns: list[str]
    source: str
    revision: str
    content_hash: str

    def metadata(self) -> dict[str, Any]:
        """Returns the facts as artifact metadata."""
        return asdict(self)


def load_dataset(raw_dataset: str | Path, preview: str | Path, settings: Settings) -> Facts:
    """Loads the dataset and writes its preview.

    Args:
        raw_dataset: Folder to write.
        preview: HTML file to write.
        settings: What to load.

    Returns:
        Facts for the artifact's metadata.

    Raises:
        UserError: If the source is missing, damaged, empty or its rows do not have the same columns.
    """
    schema = None
    while True:
        try:
            with ExitStack() as stack:
                name, revision, batches = _opened(settings, schema, stack)
                rows = _write(raw_dataset, batches, name, settings)
            break
        except TypesWidened as wider:
            schema = wider.schema
    revision = revision if isinstance(revision, str) else revision.revision
    written = tables.schema(raw_dataset)
    facts = Facts(rows, written.names, name, revision, content_hash(raw_dataset))
    _show(raw_dataset, preview, facts, settings, written)
    return facts


def _opened(
    settings: Settings, schema: pa.Schema | None, stack: ExitStack
) -> tuple[str, str | Source, Iterator[pa.RecordBatch]]:
    if settings.source_type == "huggingface":
        if settings.sha256:
            raise UserError("sha256 is the checksum of one file; pin a Hub dataset with hf_revision instead")
        if not settings.hf_dataset:
            raise UserError("source_type = 'huggingface' needs hf_dataset, such as 'tatsu-lab/alpaca'")
        commit = hub.resolved(settings.hf_dataset, settings.hf_revision)
        parts = [settings.hf_dataset, settings.hf_config, settings.hf_split]
        batches = hub.rows(settings.hf_dataset, settings.hf_config, settings.hf_split, commit)
        return " ".join(part for part in parts if part), commit, batches
    location = getattr(settings, settings.source_type)
    if not location:
        raise UserError(f"source_type = {settings.source_type!r} needs {settings.source_type}")
    if settings.source_type == "jsonl_url" and "://" not in location:
        raise UserError(
            f"jsonl_url = {location!r} is no URL; for a file of this machine use source_type = 'jsonl_path'"
        )
    source = Source(location)
    name = source.name
    if settings.sha256:
        source = stack.enter_context(source.fetched(settings.sha256))
    return name, source, formats.rows(source, schema)


def _write(folder: str | Path, batches: Iterator[pa.RecordBatch], name: str, settings: Settings) -> int:
    with TemporaryDirectory(dir=_parent(folder)) as scratch:
        if settings.max_samples and settings.seed >= 0:
            batches = sampling.sampled(batches, settings.max_samples, settings.seed, Path(scratch) / "all", name)
        elif settings.max_samples:
            batches = sampling.first_rows(batches, settings.max_samples)
        first, batches = sampling.first_of(tables.read_ahead(batches), name)
        with tables.ShardWriter(folder, first.schema) as writer:
            for batch in batches:
                writer.write(batch)
        return writer.rows


def _show(raw_dataset: str | Path, preview: str | Path, facts: Facts, settings: Settings, schema: pa.Schema) -> None:
    table = tables.head(raw_dataset, SHOWN_ROWS)
    whole = settings.max_samples == 0 or facts.rows < settings.max_samples
    taken = "all rows" if whole else "the first rows" if settings.seed < 0 else f"drawn with seed {settings.seed}"
    write_page(
        preview,
        Path(__file__).with_name("preview.html.jinja"),
        title="Load Dataset",
        facts=facts,
        taken=taken,
        types=[(field.name, str(field.type)) for field in schema],
        rows=list(zip(*(column.to_pylist() for column in table.columns), strict=True)),
        characters=SHOWN_CHARACTERS,
    )


def _parent(folder: str | Path) -> Path:
    parent = Path(folder).parent
    parent.mkdir(parents=True, exist_ok=True)
    return parent
