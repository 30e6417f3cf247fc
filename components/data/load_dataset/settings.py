"""Settings of the Load Dataset card."""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from llm_finetune.components.shared.settings import CardSettings, with_new_names
from llm_finetune.components.shared.urls import without_secrets


class Member(CardSettings):
    """One source of a mixture.

    Attributes:
        name: What it is called in `source_column`; by default the dataset or the file.
        weight: Its part of the rows, relative to the other sources.
        hf_dataset: Dataset on the Hub; or `path`.
        hf_config: As the card's setting of this name; so are `hf_split`, `hf_revision`, `sha256` and `etag`.
        path: Files, as `jsonl_path` or `jsonl_url` take them.
        license: As the card's setting of this name.
        columns: Columns to take, by the name that they shall have; empty for all as they are.
    """

    renamed: ClassVar[Mapping[str, str]] = {"licence": "license"}

    name: str = ""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    hf_dataset: str = ""
    hf_config: str = ""
    hf_split: str = Field(default="train", min_length=1)
    hf_revision: str = ""
    path: str = ""
    sha256: str = ""
    etag: str = ""
    license: str = ""
    columns: dict[str, str] = {}

    @property
    def label(self) -> str:
        """The value of `source_column`."""
        return self.name or self.hf_dataset or without_secrets(self.path)

    @model_validator(mode="before")
    @classmethod
    def _accept_old_names(cls, values: object) -> object:
        return with_new_names(cls, values, "mixture") if isinstance(values, Mapping) else values

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

    renamed: ClassVar[Mapping[str, str]] = {"licence": "license"}

    source_type: Literal["huggingface", "jsonl_url", "jsonl_path"] = Field(
        default="huggingface",
        description="`huggingface` (hf_dataset), `jsonl_url` (the file there) or `jsonl_path` (the file there).",
    )
    hf_dataset: str = Field(
        default="tatsu-lab/alpaca",
        description="Name of a dataset on the Hub. A gated one needs a token in the variable HF_TOKEN of the step.",
    )
    hf_split: str = Field(default="train", min_length=1, description="Split of the Hub dataset.")
    jsonl_path: str = Field(
        default="",
        description="One or several files, with commas between them: paths, or URLs that begin with s3://, gs://, "
        "hf:// or https://. `*`, `?`, `[...]` and `**` are patterns, such as s3://bucket/data/*.jsonl.gz, but not "
        "in https:// URLs; what they match is read in the order of names, without files that begin with `.` or `_`.",
    )
    jsonl_url: str = Field(default="", description="One or several files, as in jsonl_path, at URLs alone.")
    max_samples: int = Field(default=1000, ge=0, description="Rows to take; reading stops there. 0 takes all.")
    hf_config: str = Field(default="", description="Configuration of the Hub dataset, where it has several.")
    hf_revision: str = Field(
        default="", description="Branch, tag or commit of the Hub dataset; the commit it means is recorded."
    )
    sha256: str = Field(
        default="",
        description="Checksum that the file must have, 64 hexadecimal digits; of several files, one for each, with "
        "commas between them; empty for any.",
    )
    etag: str = Field(
        default="",
        description="What Pin Sources saw of files elsewhere, a hash over several. Nothing is done with it: a "
        "changed file is another input by it, for which no earlier result is taken from the cache.",
    )
    license: str = Field(
        default="",
        description="License of the data, which the model card shows and warns of; by default what the Hub names.",
    )
    seed: int = Field(
        default=-1,
        ge=-1,
        description="-1 takes the first max_samples rows; 0 or more draws them by chance, which reads the whole "
        "source.",
    )
    mixture: list[Member] = Field(
        default=[],
        description="Several sources in place of the one above, each a mapping of `hf_dataset` (and `hf_config`, "
        "`hf_split`, `hf_revision`) or `path` (and `sha256`), `license`, `weight` (1 by default), `name`, and "
        "`columns` (new name to old, to choose and rename). Weights are shares of the result: it has max_samples "
        "rows, or as many as the smallest source allows at its share; no row is taken twice.",
    )
    source_column: str = Field(
        default="source", description="Column that holds the name of each row's source in a mixture; empty for none."
    )

    @field_validator("sha256")
    @classmethod
    def _is_checksum(cls, value: str) -> str:
        return checksums(value)

    @model_validator(mode="after")
    def _mixture_stands_alone(self) -> Self:
        if not self.mixture:
            return self
        beside = [name for name in ("jsonl_path", "jsonl_url", "sha256", "license") if getattr(self, name)]
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
