"""Reads a dataset from the Hub, a URL or a path into Parquet shards."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from llm_finetune.components.data.load_dataset import sampling
from llm_finetune.components.data.load_dataset.mixture import Keep, Mixture
from llm_finetune.components.data.load_dataset.settings import Member, Settings
from llm_finetune.components.data.sources import hub
from llm_finetune.components.data.sources.origins import Files, HubSplit, Origin, combined, distinct
from llm_finetune.components.data.sources.types import TypesWidened, settled
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


@dataclass(frozen=True)
class Facts:
    """What was loaded.

    Attributes:
        rows: Number of rows.
        columns: Names of the columns.
        source: Where they come from.
        revision: The Hub's commit, the file's checksum or its ETag, a hash over those of several; empty where there is
            none.
        license: As the settings or the Hub name it, else `unknown`.
        sources: Of a mixture, each source's name, place, revision, license, weight, rows read and rows taken.
        content_hash: Hash of the written files.
    """

    rows: int
    columns: list[str]
    source: str
    revision: str
    license: str
    sources: list[dict[str, Any]]
    content_hash: str

    def metadata(self) -> dict[str, Any]:
        """Returns the facts as artifact metadata."""
        return asdict(self)

    def origin(self) -> dict[str, Any]:
        """Returns what later cards shall know of the data."""
        names = ("source", "revision", "license", "rows", "content_hash")
        return {f"dataset_{name}": getattr(self, name) for name in names}


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
    raw_dataset = Path(raw_dataset)
    raw_dataset.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=raw_dataset.parent) as scratch:
        load = _load_mixture if settings.mixture else _load_one
        facts, rows_by_file = load(raw_dataset, settings, Path(scratch))
    _show(raw_dataset, preview, facts, settings, rows_by_file)
    return facts


def _load_one(folder: Path, settings: Settings, scratch: Path) -> tuple[Facts, dict[str, int]]:
    origin = _origin(settings)
    if settings.max_samples and settings.seed >= 0:
        keep(origin, scratch / "all", 0)
        _write(folder, sampling.chosen(scratch / "all", settings.max_samples, settings.seed), origin.name)
    else:
        keep(origin, folder, settings.max_samples)
    if origin.rows_by_file and not settings.max_samples:
        check_accounted("Load Dataset", sum(origin.rows_by_file.values()), tables.count_rows(folder))
    license = settings.license or origin.license or UNKNOWN
    return _facts(folder, origin.name, origin.revision, license, []), origin.rows_by_file


def _load_mixture(folder: Path, settings: Settings, scratch: Path) -> tuple[Facts, dict[str, int]]:
    members = settings.mixture
    origins = [_member_origin(member) for member in members]
    mixture = Mixture(members, settings.source_column, scratch)
    keeps: list[Keep] = [partial(keep, origin) for origin in origins]
    name = " + ".join(member.label for member in members)
    _write(folder, mixture.read(keeps, settings.max_samples, settings.seed), name)
    sources = [
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
    places = distinct([origin.name for origin in origins])
    revision = combined({place: origin.revision for place, origin in zip(places, origins, strict=True)})
    license = hub.LICENSE_SEPARATOR.join(dict.fromkeys(str(source["license"]) for source in sources))
    return _facts(folder, name, revision, license, sources), {}


def _facts(folder: Path, name: str, revision: str, license: str, sources: list[dict[str, Any]]) -> Facts:
    columns = tables.schema(folder).names
    return Facts(tables.count_rows(folder), columns, name, revision, license, sources, content_hash(folder))


def _origin(settings: Settings) -> Origin:
    if settings.source_type == "huggingface":
        if settings.sha256:
            raise UserError("sha256 is the checksum of a file; pin a Hub dataset with hf_revision instead")
        if not settings.hf_dataset:
            raise UserError("source_type = 'huggingface' needs hf_dataset, such as 'tatsu-lab/alpaca'")
        return HubSplit(settings.hf_dataset, settings.hf_config, settings.hf_split, settings.hf_revision)
    location = getattr(settings, settings.source_type)
    if not location.strip(", \n"):
        raise UserError(f"source_type = {settings.source_type!r} needs {settings.source_type}")
    if settings.source_type == "jsonl_url" and "://" not in location:
        raise UserError(
            f"jsonl_url = {location!r} is no URL; for a file of this machine use source_type = 'jsonl_path'"
        )
    return Files(location, settings.sha256)


def _member_origin(member: Member) -> Origin:
    if member.hf_dataset:
        return HubSplit(member.hf_dataset, member.hf_config, member.hf_split, member.hf_revision)
    return Files(member.path, member.sha256)


def keep(origin: Origin, folder: Path, most: int) -> None:
    """Writes the rows of one place to a folder.

    Args:
        origin: The place.
        folder: Folder to write.
        most: Rows after which reading stops; 0 for all.

    Raises:
        UserError: As `Origin.batches`, and if there are no rows.
    """
    schema = None
    while True:
        batches = origin.batches(schema)
        try:
            return _write(folder, settled(sampling.first_rows(batches, most) if most else batches), origin.name)
        except TypesWidened as wider:
            schema = wider.schema


def _write(folder: Path, batches: Iterator[pa.RecordBatch], name: str) -> None:
    first, batches = sampling.first_of(tables.read_ahead(batches), name)
    with tables.ShardWriter(folder, first.schema) as writer:
        for batch in batches:
            writer.write(batch)


def _show(
    raw_dataset: Path, preview: str | Path, facts: Facts, settings: Settings, rows_by_file: dict[str, int]
) -> None:
    table = tables.head(raw_dataset, SHOWN_ROWS)
    shown = table.select(table.column_names[:SHOWN_COLUMNS])
    whole = settings.max_samples == 0 or facts.rows < settings.max_samples
    drawn = f"drawn with seed {settings.seed}"
    first = "the first rows" if settings.seed < 0 else drawn
    write_page(
        preview,
        Path(__file__).with_name("preview.html.jinja"),
        title="Load Dataset",
        facts=facts,
        taken="by weight, " + first if facts.sources else "all rows" if whole else first,
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
