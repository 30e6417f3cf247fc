"""Checks that no row is lost between and within cards."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.metadata import HasMetadata, read_metadata


class Artifact(HasMetadata, Protocol):
    """An input artifact of a card, such as KFP's `Dataset`."""

    path: str


def check_whole(datasets: Mapping[str, Artifact | None]) -> None:
    """Raises if the files of a dataset have a different number of rows than its metadata.

    Args:
        datasets: Input artifacts by name, or None. Artifacts without `rows` in
            their metadata, such as imported ones, are not checked.

    Raises:
            UserError: If rows are missing or a file is truncated.
    """
    for name, dataset in datasets.items():
        if dataset is not None and (rows := read_metadata(dataset).get("rows")) is not None:
            check_files(name, dataset.path, int(rows))


def check_files(name: str, folder: str | Path, rows: int) -> None:
    """Raises if the files of a folder have a different number of rows.

    Args:
        name: Name of the folder for the message.
        folder: Folder with Parquet files.
        rows: Expected number of rows.

    Raises:
        UserError: If rows are missing or a file is truncated.
    """
    hint = "Files were lost or truncated in the object store: run the card that wrote it again, without the cache"
    found = 0
    for file in sorted(Path(folder).glob("*.parquet")):
        try:
            found += pq.read_metadata(file).num_rows
        except pa.ArrowInvalid as error:
            raise UserError(f"{name}: {file.name} is not a complete Parquet file ({error}). {hint}") from None
    if found != rows:
        raise UserError(f"{name} was written with {rows:,} rows, but its files have {found:,}. {hint}")


def check_accounted(card: str, read: int, written: int, dropped: Mapping[str, int] | None = None) -> None:
    """Raises unless every row was either written or dropped for a reason.

    Args:
        card: Name of the card for the message.
        read: Rows in the input's files.
        written: Rows in the output.
        dropped: Dropped rows by reason.

    Raises:
            UserError: If the numbers do not add up.
    """
    lost = sum((dropped or {}).values())
    missing = read - written - lost
    if missing:
        raise UserError(
            f"{card} read {read:,} rows, wrote {written:,} and dropped {lost:,}: {abs(missing):,} are "
            f"{'missing' if missing > 0 else 'too many'}. This is a defect of the card, not of the data: "
            "report it with the card's settings and the columns of its input"
        )


def planned_order(kind: str, planned: Sequence[str], arrived: Sequence[str]) -> list[int]:
    """Returns the indices of artifacts in the planned order; raises unless exactly the planned ones arrived.

    Args:
        kind: Kind of the artifacts: `shard` or `partition`.
        planned: Names of the planned artifacts.
        arrived: Names of the artifacts that arrived.

    Raises:
        UserError: If artifacts are missing, duplicate or not planned.
    """
    order: list[int] = []
    rest, missing = list(range(len(arrived))), []
    for number, name in enumerate(planned):
        place = next((place for place in rest if arrived[place] == name), None)
        if place is None:
            missing.append(f"{kind} {number}" + (f" ({name})" if name != str(number) else ""))
        else:
            order.append(place)
            rest.remove(place)
    if missing or rest:
        found = [f"missing: {', '.join(missing)}"] if missing else []
        found += [f"not planned or duplicate: {', '.join(arrived[place] for place in rest)}"] if rest else []
        raise UserError(
            f"{len(planned):,} {kind}s were planned, {len(arrived):,} arrived; {'; '.join(found)}. The backend did not "
            "pass on all outputs of the loop before. Run the pipeline again; if this error occurs again, use "
            "shards = 1 and report it with the version of the backend"
        )
    return order
