"""Settings of the Load Dataset card."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from llm_finetune.components.shared.settings import CardSettings
from llm_finetune.components.shared.urls import without_secrets


class Member(BaseModel):
    """One source of a mixture.

    Attributes:
        name: What it is called in `source_column`; by default the dataset or the file.
        weight: Its part of the rows, relative to the other sources.
        hf_dataset: Dataset on the Hub; or `path`.
        hf_config: As the card's setting of this name; so are `hf_split`, `hf_revision`, `sha256` and `etag`.
        path: Files, as `jsonl_path` or `jsonl_url` take them.
        licence: As the card's setting of this name.
        columns: Columns to take, by the name that they shall have; empty for all as they are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = ""
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    hf_dataset: str = ""
    hf_config: str = ""
    hf_split: str = Field("train", min_length=1)
    hf_revision: str = ""
    path: str = ""
    sha256: str = ""
    etag: str = ""
    licence: str = ""
    columns: dict[str, str] = {}

    @property
    def label(self) -> str:
        """The value of `source_column`."""
        return self.name or self.hf_dataset or without_secrets(self.path)

    @field_validator("sha256")
    @classmethod
    def _is_checksum(cls, value: str) -> str:
        return checksums(value)

    @model_validator(mode="after")
    def _has_one_place(self) -> Self:
        if bool(self.hf_dataset) == bool(self.path):
            raise ValueError("a source of a mixture has either hf_dataset or path")
        return self


class Settings(CardSettings):
    """Settings of the card; `component.py` documents them."""

    source_type: Literal["huggingface", "jsonl_url", "jsonl_path"] = "huggingface"
    hf_dataset: str = "tatsu-lab/alpaca"
    hf_split: str = Field("train", min_length=1)
    jsonl_path: str = ""
    jsonl_url: str = ""
    max_samples: int = Field(1000, ge=0)
    hf_config: str = ""
    hf_revision: str = ""
    sha256: str = ""
    etag: str = ""
    licence: str = ""
    seed: int = Field(-1, ge=-1)
    mixture: list[Member] = Field([])
    source_column: str = "source"

    @field_validator("sha256")
    @classmethod
    def _is_checksum(cls, value: str) -> str:
        return checksums(value)

    @model_validator(mode="after")
    def _mixture_stands_alone(self) -> Self:
        if not self.mixture:
            return self
        beside = [name for name in ("jsonl_path", "jsonl_url", "sha256", "licence") if getattr(self, name)]
        if beside:
            raise ValueError(f"a mixture names all its sources; put {beside[0]} into one of them")
        labels = [member.label for member in self.mixture]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice:
            raise ValueError(f"two sources of the mixture are called {twice!r}; give each a name")
        if self.max_samples and self.max_samples < len(labels):
            raise ValueError(f"max_samples = {self.max_samples} is less than a row for each of {len(labels)} sources")
        return self


def checksums(value: str) -> str:
    """Returns SHA-256 sums, with commas between them, as they are; raises ValueError for anything else."""
    for part in value.split(",") if value else []:
        digits = part.strip().lower().removeprefix("sha256:")
        if len(digits) != 64 or set(digits) - set("0123456789abcdef"):
            raise ValueError("a SHA-256 has 64 hexadecimal digits")
    return value
