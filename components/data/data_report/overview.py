"""Counts the rows after each card, and the dropped rows by reason."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError

Metadata = Mapping[str, Any]


@dataclass(frozen=True)
class CardRows:
    """Rows after a card.

    Attributes:
        name: Name of the card.
        rows: Rows that the card passed on.
        lost: Dropped rows by reason.
    """

    name: str
    rows: int
    lost: dict[str, int]


def card_rows(paths: Mapping[str, str | Path], metadata: Mapping[str, Metadata]) -> list[CardRows]:
    """Returns the rows after each card.

    Rows are counted on disk; reasons are read from the artifacts' metadata.

    Args:
        paths: Folder of each dataset by artifact name.
        metadata: Metadata of each dataset by artifact name.

    Returns:
        The cards in order, with training and validation rows added up.

    Raises:
        UserError: If a card read a different number of rows than the card before wrote.
    """
    rows = {name: tables.count_rows(path) for name, path in paths.items()}
    _check_chain(rows, metadata)
    raw, clean = rows["raw_dataset"], rows["clean_dataset"]
    splits = [rows["train_dataset"], rows["val_dataset"]]
    formatted = rows["train_sft"] + rows["val_sft"]
    tokens = [metadata["train_tokens"], metadata["val_tokens"]]
    too_long = _sum(tokens, "dropped_overlength")
    prompt_only = _sum(tokens, "dropped_prompt_only")
    return [
        CardRows("Load Dataset", raw, {}),
        CardRows("Filter & Clean", clean, _by_reason(metadata["clean_dataset"].get("dropped", {}), raw - clean)),
        CardRows("Train/Val Split", sum(splits), _by_reason({}, clean - sum(splits))),
        CardRows("Format for SFT", formatted, _by_reason(_skipped(metadata), sum(splits) - formatted)),
        CardRows(
            "Tokenize",
            formatted - too_long - prompt_only,
            _by_reason({"too_long_in_tokens": too_long, "too_long_already_in_the_prompt": prompt_only}, 0),
        ),
    ]


def split_table(metadata: Mapping[str, Metadata], rows: Mapping[str, int]) -> list[list[object]]:
    """Returns for both splits: rows, documents, token rows, tokens, trained tokens, their share, truncated documents.

    Args:
        metadata: Metadata of each dataset by artifact name.
        rows: Rows of `train_dataset` and `val_dataset`.
    """
    table: list[list[object]] = []
    for split in ("train", "val"):
        facts = metadata[f"{split}_tokens"]
        tokens, trained = int(facts.get("tokens", 0)), int(facts.get("supervised_tokens", 0))
        share = f"{100 * trained / tokens:.0f} %" if tokens else ""
        counts = [rows[f"{split}_dataset"], *(int(facts.get(name, 0)) for name in ("documents", "rows"))]
        table.append(
            [
                "training" if split == "train" else "validation",
                *counts,
                tokens,
                trained,
                share,
                int(facts.get("cut", 0)),
            ]
        )
    return table


def leakage_table(metadata: Mapping[str, Metadata]) -> list[list[object]]:
    """Returns the leakage that Train/Val Split measured, formatted for a page."""
    measured = metadata["val_dataset"].get("leakage") or {}
    return [
        [name.replace("_", " "), "not searched" if count < 0 else f"{int(count):,}"]
        for name, count in measured.items()
        if isinstance(count, int | float)
    ]


def _check_chain(rows: Mapping[str, int], metadata: Mapping[str, Metadata]) -> None:
    """Raises if a dataset was made from a different number of rows than the dataset before it has."""
    links = [("raw_dataset", "clean_dataset", "rows_in")]
    for split in ("train", "val"):
        links += [
            ("clean_dataset", f"{split}_dataset", "rows_in"),
            (f"{split}_dataset", f"{split}_sft", "rows_in"),
            (f"{split}_sft", f"{split}_tokens", "documents"),
        ]
    for before, after, name in links:
        read = metadata[after].get(name)
        if read is not None and int(read) != rows[before]:
            raise UserError(
                f"{after} was made from {int(read):,} rows, but {before} has {rows[before]:,}: rows were lost between "
                "the two, or they are from different runs. Use the datasets of one run"
            )


def _skipped(metadata: Mapping[str, Metadata]) -> dict[str, int]:
    both = [metadata[name].get("skipped", {}) for name in ("train_sft", "val_sft")]
    return {reason: _sum(both, reason) for reason in dict.fromkeys([*both[0], *both[1]])}


def _by_reason(reasons: Mapping[str, int], lost: int) -> dict[str, int]:
    """Returns the dropped rows by reason in words, and the rows without a recorded reason."""
    explained = {reason.replace("_", " "): int(count) for reason, count in reasons.items() if count}
    unexplained = lost - sum(explained.values())
    return explained | ({"no recorded reason": unexplained} if unexplained > 0 else {})


def _sum(facts: list[Metadata], name: str) -> int:
    return sum(int(each.get(name, 0)) for each in facts)
