"""Loads a dataset from the Hub, a URL or a path into Parquet shards."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict

import pyarrow as pa

from llm_finetune.components.data.load_dataset import sampling
from llm_finetune.components.data.load_dataset.mixture import Mixture, WriteRows
from llm_finetune.components.data.load_dataset.settings import Member, Settings
from llm_finetune.components.data.sources import hub
from llm_finetune.components.data.sources.column_types import TypesWidened, stable_batches
from llm_finetune.components.data.sources.origins import Files, HubSplit, Origin, combined_revision, unique_names
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import content_hash
from llm_finetune.components.shared.pages import write_page
from llm_finetune.components.shared.row_counts import check_accounted

UNKNOWN = "unknown"
SHOWN_ROWS = 20
SHOWN_COLUMNS = 50
SHOWN_FILES = 100
SHOWN_CHARACTERS = 200


class MixtureSource(TypedDict):
    """Facts about one source of a mixture."""

    name: str
    source: str
    revision: str
    license: str
    weight: float
    rows_read: int
    rows: int


@dataclass(frozen=True)
class Facts:
    """Facts about the loaded dataset.

    Attributes:
        rows: Number of rows.
        columns: Column names.
        source: Name of the source.
        revision: Commit, checksum or ETag of the source, or a hash over several; empty if unknown.
        license: License from the settings or the dataset card, or `unknown`.
        sources: Facts about each source of a mixture.
        content_hash: Hash of the written files.
    """

    rows: int
    columns: list[str]
    source: str
    revision: str
    license: str
    sources: list[MixtureSource]
    content_hash: str

    def metadata(self) -> dict[str, object]:
        """Returns the facts as artifact metadata."""
        return asdict(self)

    def origin(self) -> dict[str, object]:
        """Returns the origin of the data, which later cards record too."""
        names = ("source", "revision", "license", "rows", "content_hash")
        return {f"dataset_{name}": getattr(self, name) for name in names}


def load_dataset(raw_dataset: str | Path, preview: str | Path, settings: Settings) -> Facts:
    """Loads a dataset and writes its preview.

    Args:
        raw_dataset: Folder to write.
        preview: HTML file to write.
        settings: The card's settings.

    Returns:
        Facts for the artifact's metadata.

    Raises:
        UserError: If the source is missing, damaged or empty, or its rows have different columns.
    """
    raw_dataset = Path(raw_dataset)
    raw_dataset.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=raw_dataset.parent) as scratch:
        load = _load_mixture if settings.mixture else _load_one
        facts, rows_by_file = load(raw_dataset, settings, Path(scratch))
    _write_preview(raw_dataset, preview, facts, settings, rows_by_file)
    return facts


def _load_one(folder: Path, settings: Settings, scratch: Path) -> tuple[Facts, dict[str, int]]:
    origin = _origin(settings)
    if settings.max_samples and settings.seed >= 0:
        write_rows(origin, scratch / "all", 0)
        _write(folder, sampling.sample_rows(scratch / "all", settings.max_samples, settings.seed), origin.name)
    else:
        write_rows(origin, folder, settings.max_samples)
    if origin.rows_by_file and not settings.max_samples:
        check_accounted("Load Dataset", sum(origin.rows_by_file.values()), tables.count_rows(folder))
    license = settings.license or origin.license or UNKNOWN
    return _facts(folder, origin.name, origin.revision, license, []), origin.rows_by_file


def _load_mixture(folder: Path, settings: Settings, scratch: Path) -> tuple[Facts, dict[str, int]]:
    members = settings.mixture
    origins = [_member_origin(member) for member in members]
    mixture = Mixture(members, settings.source_column, scratch)
    writers: list[WriteRows] = [partial(write_rows, origin) for origin in origins]
    name = " + ".join(member.label for member in members)
    _write(folder, mixture.read(writers, settings.max_samples, settings.seed), name)
    sources: list[MixtureSource] = [
        {
            "name": member.label,
            "source": origin.name,
            "revision": origin.revision,
            "license": member.license or origin.license or UNKNOWN,
            "weight": member.weight,
            "rows_read": read,
            "rows": taken,
        }
        for member, origin, read, taken in zip(members, origins, mixture.available, mixture.taken, strict=True)
    ]
    names = unique_names([origin.name for origin in origins])
    revision = combined_revision({name: origin.revision for name, origin in zip(names, origins, strict=True)})
    license = hub.LICENSE_SEPARATOR.join(dict.fromkeys(source["license"] for source in sources))
    return _facts(folder, name, revision, license, sources), {}


def _facts(folder: Path, name: str, revision: str, license: str, sources: list[MixtureSource]) -> Facts:
    columns = tables.schema(folder).names
    return Facts(tables.count_rows(folder), columns, name, revision, license, sources, content_hash(folder))


def _origin(settings: Settings) -> Origin:
    if settings.source_type == "huggingface":
        if settings.sha256:
            raise UserError("sha256 is for files; pin a Hub dataset with hf_revision instead")
        if not settings.hf_dataset:
            raise UserError("source_type = 'huggingface' needs hf_dataset, such as 'tatsu-lab/alpaca'")
        return HubSplit(settings.hf_dataset, settings.hf_config, settings.hf_split, settings.hf_revision)
    location = getattr(settings, settings.source_type)
    if not location.strip(", \n"):
        raise UserError(f"source_type = {settings.source_type!r} needs {settings.source_type}")
    if settings.source_type == "jsonl_url" and "://" not in location:
        raise UserError(f"jsonl_url = {location!r} is not a URL; for a local file use source_type = 'jsonl_path'")
    return Files(location, settings.sha256)


def _member_origin(member: Member) -> Origin:
    if member.hf_dataset:
        return HubSplit(member.hf_dataset, member.hf_config, member.hf_split, member.hf_revision)
    return Files(member.path, member.sha256)


def write_rows(origin: Origin, folder: Path, max_rows: int) -> None:
    """Writes the rows of one source to a folder.

    Args:
        origin: The source.
        folder: Folder to write.
        max_rows: Maximum number of rows; 0 for all.

    Raises:
        UserError: See `Origin.batches`; also if there are no rows.
    """
    schema = None
    while True:
        batches = origin.batches(schema)
        try:
            limited = sampling.take_rows(batches, max_rows) if max_rows else batches
            return _write(folder, stable_batches(limited), origin.name)
        except TypesWidened as wider:
            schema = wider.schema


def _write(folder: Path, batches: Iterator[pa.RecordBatch], name: str) -> None:
    first, batches = sampling.peek(tables.read_ahead(batches), name)
    with tables.ShardWriter(folder, first.schema) as writer:
        for batch in batches:
            writer.write(batch)


def _write_preview(
    raw_dataset: Path, preview: str | Path, facts: Facts, settings: Settings, rows_by_file: dict[str, int]
) -> None:
    table = tables.head(raw_dataset, SHOWN_ROWS)
    shown = table.select(table.column_names[:SHOWN_COLUMNS])
    is_complete = settings.max_samples == 0 or facts.rows < settings.max_samples
    selection = "the first rows" if settings.seed < 0 else f"a random sample with seed {settings.seed}"
    write_page(
        preview,
        Path(__file__).with_name("preview.html.jinja"),
        title="Load Dataset",
        facts=facts,
        taken="by weight, " + selection if facts.sources else "all rows" if is_complete else selection,
        sources=[
            (source["name"], source["source"], source["revision"], source["license"], f"{source['weight']:g}",
             source["rows_read"], source["rows"], f"{100 * source['rows'] / facts.rows:.2f} %")
            for source in facts.sources
        ],
        files=list(rows_by_file.items())[:SHOWN_FILES] if len(rows_by_file) > 1 else [],
        more_files=max(len(rows_by_file) - SHOWN_FILES, 0),
        types=[(field.name, str(field.type)) for field in table.schema][:SHOWN_COLUMNS],
        more_columns=max(table.num_columns - SHOWN_COLUMNS, 0),
        columns=shown.column_names,
        rows=list(zip(*(column.to_pylist() for column in shown.columns), strict=True)),
        characters=SHOWN_CHARACTERS,
    )  # fmt: skip
