"""Facts about the rows that Filter & Clean kept and dropped."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Facts:
    """Facts about the kept and dropped rows.

    Attributes:
        rows: Rows kept.
        rows_in: Rows read.
        dropped: Dropped rows by reason.
        personal_data: Personal data found in the kept rows, by kind; empty with pii = off.
        converted: Values converted to text, by column.
        repaired: Number of repaired texts.
        layout: Name of the data's layout.
        columns: Column names.
        content_hash: Hash of the files with the kept rows.
        dropped_content_hash: Hash of the files with the dropped rows.
    """

    rows: int
    rows_in: int
    dropped: dict[str, int]
    personal_data: dict[str, int]
    converted: dict[str, int]
    repaired: int
    layout: str
    columns: list[str]
    content_hash: str
    dropped_content_hash: str

    def metadata(self) -> dict[str, object]:
        """Returns the metadata of the clean dataset."""
        facts = asdict(self)
        del facts["dropped_content_hash"]
        return facts

    def dropped_metadata(self) -> dict[str, object]:
        """Returns the metadata of the dropped rows."""
        return {
            "rows": self.rows_in - self.rows,
            "columns": [*self.columns, "reason"],
            "dropped": self.dropped,
            "content_hash": self.dropped_content_hash,
        }
