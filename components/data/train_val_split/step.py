"""Splits rows into training and validation so that no duplicate leaks across the split."""

from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from llm_finetune.components.data.train_val_split import groups
from llm_finetune.components.data.train_val_split.assign import validation_rows
from llm_finetune.components.data.train_val_split.settings import Settings
from llm_finetune.components.data.train_val_split.shuffle import Shuffle
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError, nearest
from llm_finetune.components.shared.files import content_hash
from llm_finetune.components.shared.pages import write_page
from llm_finetune.components.shared.row_counts import check_accounted
from llm_finetune.components.shared.rows.layouts import detect_layout
from llm_finetune.components.shared.rows.text import check_columns

SHOWN_STRATA = 50


@dataclass(frozen=True)
class Leakage:
    """Overlap of validation with training, measured on the result.

    Attributes:
        same_row: Validation rows that are also in training.
        near_duplicate: Validation rows with a near-duplicate in training; -1 if not searched.
        close: Validation rows with a similarity slightly below the threshold; -1 if not searched.
        same_prompt: Validation rows whose instruction and input are also in training, with another answer.
        same_group: Validation rows whose group is also in training.
    """

    same_row: int
    near_duplicate: int
    close: int
    same_prompt: int
    same_group: int


@dataclass(frozen=True)
class Facts:
    """Facts about the split.

    Attributes:
        train_rows: Rows for training.
        val_rows: Rows for validation.
        kept_together: Rows in groups of more than one row.
        groups: Number of groups, including single rows.
        leakage: Remaining overlap of the two sides.
        strata: Training and validation rows by value of `stratify_key`.
        columns: Column names.
        train_content_hash: Hash of the training files.
        val_content_hash: Hash of the validation files.
    """

    train_rows: int
    val_rows: int
    kept_together: int
    groups: int
    leakage: Leakage
    strata: dict[str, tuple[int, int]]
    columns: list[str]
    train_content_hash: str
    val_content_hash: str

    def metadata(self, split: str) -> dict[str, object]:
        """Returns the metadata of one side.

        Args:
            split: `train` or `val`.
        """
        rows = self.train_rows if split == "train" else self.val_rows
        return {
            "split": split,
            "rows": rows,
            "rows_in": self.train_rows + self.val_rows,
            "share": rows / (self.train_rows + self.val_rows),
            "columns": self.columns,
            "leakage": asdict(self.leakage),
            "strata": {name: rows[split == "val"] for name, rows in self.strata.items()},
            "content_hash": self.train_content_hash if split == "train" else self.val_content_hash,
        }


def train_val_split(
    clean_dataset: str | Path,
    train_dataset: str | Path,
    val_dataset: str | Path,
    preview: str | Path,
    settings: Settings,
) -> Facts:
    """Splits a dataset and writes its preview.

    Args:
        clean_dataset: Folder with the rows.
        train_dataset: Folder to write for training.
        val_dataset: Folder to write for validation.
        preview: HTML file to write.
        settings: The card's settings.

    Returns:
        Facts for the artifacts' metadata.

    Raises:
        UserError: If a column is missing or a side would be empty.
    """
    schema = tables.schema(clean_dataset)
    settings = detect_layout(schema, settings)
    if settings.chat_key:
        check_columns(schema, settings)
    for name in ("group_key", "stratify_key"):
        key = getattr(settings, name)
        if key and key not in schema.names:
            raise UserError(
                f"{name} = {key!r}: no such column{nearest(key, schema.names)} (columns: {', '.join(schema.names)})"
            )
    train_dataset, val_dataset = Path(train_dataset), Path(val_dataset)
    train_dataset.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=train_dataset.parent) as scratch, Shuffle(clean_dataset, Path(scratch)) as shuffle:
        rows = groups.read_keys(clean_dataset, settings, shuffle)
        labels = groups.group_labels(rows)
        is_val = validation_rows(labels, rows.content, settings.val_ratio, settings.shuffle_seed, rows.strata)
        shuffle.write([train_dataset, val_dataset], is_val)
    written = tables.count_rows(train_dataset) + tables.count_rows(val_dataset)
    check_accounted("Train/Val Split", tables.count_rows(clean_dataset), written)
    sizes = np.bincount(labels)
    facts = Facts(
        train_rows=int(len(is_val) - is_val.sum()),
        val_rows=int(is_val.sum()),
        kept_together=int(sizes[sizes > 1].sum()),
        groups=len(sizes),
        leakage=leakage(rows, is_val),
        strata=strata(rows, is_val),
        columns=schema.names,
        train_content_hash=content_hash(train_dataset),
        val_content_hash=content_hash(val_dataset),
    )
    _write_preview(preview, facts, settings, rows.near_checked)
    return facts


def leakage(rows: groups.RowKeys, is_val: np.ndarray) -> Leakage:
    """Measures the overlap of validation with training.

    Args:
        rows: Result of `groups.read_keys`.
        is_val: True for validation, shape [rows].

    Returns:
        Counts of validation rows.
    """

    def across(pairs: np.ndarray) -> int:
        if not rows.near_checked:
            return -1
        straddling = pairs[is_val[pairs[:, 0]] != is_val[pairs[:, 1]]]
        return len(np.unique(straddling[is_val[straddling]]))

    same_row = _shared(rows.content, is_val)
    group = np.zeros(len(is_val), bool)
    if rows.group is not None and rows.has_group is not None:
        group = _shared(np.stack([rows.group, rows.group], axis=1), is_val) & rows.has_group
    return Leakage(
        same_row=int(same_row.sum()),
        near_duplicate=across(rows.pairs),
        close=across(rows.close),
        same_prompt=int((_shared(rows.prompt, is_val) & ~same_row).sum()),
        same_group=int(group.sum()),
    )


def strata(rows: groups.RowKeys, is_val: np.ndarray) -> dict[str, tuple[int, int]]:
    """Returns the training and validation rows by value of `stratify_key`; empty without `stratify_key`."""
    if rows.strata is None:
        return {}
    count = len(rows.stratum_names)
    train, val = (np.bincount(rows.strata[side], minlength=count).tolist() for side in (~is_val, is_val))
    return dict(zip(rows.stratum_names, zip(train, val, strict=True), strict=True))


def _shared(hashes: np.ndarray, is_val: np.ndarray) -> np.ndarray:
    """Returns True for validation rows whose hash is also in training."""
    shared = np.zeros(len(is_val), bool)
    shared[is_val] = np.isin(hashes[is_val, 0], hashes[~is_val, 0])
    return shared


def _write_preview(preview: str | Path, facts: Facts, settings: Settings, near_checked: bool) -> None:
    total = facts.train_rows + facts.val_rows
    splits = [
        (name, rows, f"{100 * rows / total:.2f} %")
        for name, rows in (("training", facts.train_rows), ("validation", facts.val_rows))
    ]
    write_page(
        preview,
        Path(__file__).with_name("preview.html.jinja"),
        title="Train/Val Split",
        facts=facts,
        splits=splits,
        strata=[
            (name or "(empty)", train, val, f"{100 * val / (train + val):.2f} %")
            for name, (train, val) in list(facts.strata.items())[:SHOWN_STRATA]
        ],
        more_strata=max(len(facts.strata) - SHOWN_STRATA, 0),
        settings=settings,
        target=f"{100 * settings.val_ratio:g} %",
        missed_target=abs(facts.val_rows / total - settings.val_ratio) > max(0.1 * settings.val_ratio, 1 / total),
        near_checked=near_checked,
        near_rows=groups.MAX_NEAR_ROWS,
    )
