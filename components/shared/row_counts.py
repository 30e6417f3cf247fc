"""Whether every row is there: what a card was given, and what became of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.metadata import read_metadata


def check_whole(datasets: Mapping[str, Any]) -> None:
    """Refuses a dataset whose files do not hold the rows that its card has recorded: a file did not arrive.

    Args:
        datasets: Input artifacts by name (anything with `path` and `metadata`); absent ones may be None. One without
            `rows` in its metadata, as one that was imported, has nothing to be compared with.

    Raises:
        UserError: If rows are missing, or a file is not whole.
    """
    for name, dataset in datasets.items():
        rows = read_metadata(dataset).get("rows") if dataset is not None else None
        if rows is not None:
            check_files(name, dataset.path, int(rows))


def check_files(name: str, folder: str | Path, rows: int) -> None:
    """Refuses a folder whose files do not hold so many rows.

    Args:
        name: What the folder is, for the message.
        folder: Folder of Parquet files.
        rows: Rows that were written.

    Raises:
        UserError: If rows are missing, or a file is not whole.
    """
    again = "Files were lost or cut in the object store: run the card that made it again, without its cached result"
    held = 0
    for file in sorted(Path(folder).glob("*.parquet")):
        try:
            held += pq.read_metadata(file).num_rows
        except pa.ArrowInvalid as error:
            raise UserError(f"{name} file {file.name} is not a whole Parquet file ({error}). {again}") from None
    if held != rows:
        raise UserError(f"{name} was written with {rows:,} rows, but its files hold {held:,}. {again}")


def check_accounted(card: str, read: int, written: int, dropped: Mapping[str, int] | None = None) -> None:
    """Refuses a result in which a row is neither written nor dropped for a reason, or is there twice.

    Args:
        card: Name of the card, for the message.
        read: Rows that the input's files hold.
        written: Rows that went on.
        dropped: Rows that did not, by reason.

    Raises:
        UserError: If the numbers do not add up.
    """
    lost = sum((dropped or {}).values())
    missing = read - written - lost
    if missing:
        raise UserError(
            f"{card} was given {read:,} rows, wrote {written:,} and dropped {lost:,}: {abs(missing):,} are "
            f"{'missing' if missing > 0 else 'too many'}. This is a fault of the card, not of the data: "
            "report it with the card's settings and the columns of its input"
        )


def planned_order(kind: str, planned: Sequence[str], arrived: Sequence[str]) -> list[int]:
    """Returns the places of artifacts in the order in which they were planned; refuses any but exactly these.

    Args:
        kind: What they are: `shard` or `partition`.
        planned: Name of each that was planned.
        arrived: Name of each that is there.

    Raises:
        UserError: Naming what is missing and what is too much.
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
        found += [f"not planned, or there twice: {', '.join(arrived[place] for place in rest)}"] if rest else []
        raise UserError(
            f"{len(planned):,} {kind}s were planned, {len(arrived):,} arrived; {'; '.join(found)}. The backend has not "
            "handed over all that the loop before has written. Run the pipeline again; if it fails here again, run it "
            "with shards = 1 and report it with the version of the backend"
        )
    return order
