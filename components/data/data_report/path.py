"""The way of the rows through the cards: how many went on, and why the others did not."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError

Metadata = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """What one card made of the rows.

    Attributes:
        card: Its name.
        rows: Rows that went on.
        lost: Rows that did not, by reason.
    """

    card: str
    rows: int
    lost: dict[str, int]


def steps(paths: Mapping[str, str | Path], metadata: Mapping[str, Metadata]) -> list[Step]:
    """Follows the rows from card to card.

    The rows are counted on disk; the reasons are what the cards have written into the artifacts' metadata.

    Args:
        paths: Folder of each dataset by the artifact's name.
        metadata: Its metadata.

    Returns:
        The cards in order. Training and validation rows are counted together.

    Raises:
        UserError: If a card has read other rows than the one before has written.
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
        Step("Load Dataset", raw, {}),
        Step("Filter & Clean", clean, _explained(metadata["clean_dataset"].get("dropped", {}), raw - clean)),
        Step("Train/Val Split", sum(splits), _explained({}, clean - sum(splits))),
        Step("Format for SFT", formatted, _explained(_skipped(metadata), sum(splits) - formatted)),
        Step(
            "Tokenize",
            formatted - too_long - prompt_only,
            _explained({"too_long_in_tokens": too_long, "too_long_already_in_the_prompt": prompt_only}, 0),
        ),
    ]


def split_table(metadata: Mapping[str, Metadata], rows: Mapping[str, int]) -> list[list[Any]]:
    """Returns, for both splits: rows, documents, token rows, tokens, trained tokens and their share, documents cut.

    Args:
        metadata: Metadata of each dataset by the artifact's name.
        rows: Rows of `train_dataset` and `val_dataset`.
    """
    table = []
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


def leakage_table(metadata: Mapping[str, Metadata]) -> list[list[Any]]:
    """Returns what the split has measured of the validation rows that training knows too, for people."""
    measured = metadata["val_dataset"].get("leakage") or {}
    return [
        [name.replace("_", " "), "not looked for" if count < 0 else f"{int(count):,}"]
        for name, count in measured.items()
        if isinstance(count, int | float)
    ]


def _check_chain(rows: Mapping[str, int], metadata: Mapping[str, Metadata]) -> None:
    """Refuses datasets of which one was made from other rows than the one before it holds."""
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
                f"{after} was made from {int(read):,} rows, and {before} has {rows[before]:,}: rows were lost between "
                "the two, or they are not of one run. Give the report the datasets of one run"
            )


def _skipped(metadata: Mapping[str, Metadata]) -> dict[str, int]:
    both = [metadata[name].get("skipped", {}) for name in ("train_sft", "val_sft")]
    return {reason: _sum(both, reason) for reason in dict.fromkeys([*both[0], *both[1]])}


def _explained(reasons: Mapping[str, Any], lost: int) -> dict[str, int]:
    """Returns the reasons in words, and what no reason is known for."""
    known = {reason.replace("_", " "): int(count) for reason, count in reasons.items() if count}
    unknown = lost - sum(known.values())
    return known | ({"no reason on record": unknown} if unknown > 0 else {})


def _sum(facts: list[Metadata], name: str) -> int:
    return sum(int(each.get(name, 0)) for each in facts)
