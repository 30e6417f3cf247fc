"""Settings of the Load Dataset card."""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from llm_finetune.components.shared.settings import CardSettings, replace_old_names
from llm_finetune.components.shared.urls import without_secrets


class Member(CardSettings):
    """One source of a mixture.

    Attributes:
        name: Value in `source_column`; by default the dataset or the file.
        weight: Share of the rows, relative to the other sources.
        hf_dataset: Dataset on the Hub; or use `path`.
        hf_config: See the card's setting; so are `hf_split`, `hf_revision`, `sha256` and `etag`.
        path: Files, as in `jsonl_path` or `jsonl_url`.
        license: See the card's setting.
        columns: Columns to select and rename, as new name to old name; empty for all.
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
    columns: dict[str, str] = Field(default={})

    @property
    def label(self) -> str:
        """Value in `source_column`."""
        return self.name or self.hf_dataset or without_secrets(self.path)

    @model_validator(mode="before")
    @classmethod
    def _accept_old_names(cls, values: object) -> object:
        return replace_old_names(cls, values, "mixture") if isinstance(values, Mapping) else values

    @field_validator("sha256")
    @classmethod
    def _is_checksum(cls, value: str) -> str:
        return check_checksums(value)

    @model_validator(mode="after")
    def _has_one_place(self) -> Self:
        if bool(self.hf_dataset) == bool(self.path):
            raise ValueError("a source of a mixture needs exactly one of hf_dataset and path")
        return self


class Settings(CardSettings):
    """Settings of the card; `component.py` documents them."""

    renamed: ClassVar[Mapping[str, str]] = {"licence": "license"}

    source_type: Literal["huggingface", "jsonl_url", "jsonl_path"] = Field(
        default="huggingface",
        description="`huggingface` (reads hf_dataset), `jsonl_url` or `jsonl_path` (read the files in the parameter "
        "of that name).",
    )
    hf_dataset: str = Field(
        default="tatsu-lab/alpaca",
        description="Name of a dataset on the Hub. A gated dataset needs a token in the step's variable HF_TOKEN.",
    )
    hf_split: str = Field(default="train", min_length=1, description="Split of the Hub dataset.")
    jsonl_path: str = Field(
        default="",
        description="One or several files, separated by commas: paths, or URLs that start with s3://, gs://, hf:// or "
        "https://. `*`, `?`, `[...]` and `**` are patterns, such as s3://bucket/data/*.jsonl.gz, except in https:// "
        "URLs; matches are read in the order of their names, without files that start with `.` or `_`.",
    )
    jsonl_url: str = Field(default="", description="One or several files as in jsonl_path, but URLs only.")
    max_samples: int = Field(default=1000, ge=0, description="Maximum number of rows; 0 for all.")
    hf_config: str = Field(default="", description="Configuration of the Hub dataset, if it has several.")
    hf_revision: str = Field(
        default="", description="Branch, tag or commit of the Hub dataset; the resolved commit is recorded."
    )
    sha256: str = Field(
        default="",
        description="Expected SHA-256 checksum of the file, 64 hexadecimal digits; for several files one each, "
        "separated by commas; empty to skip the check.",
    )
    etag: str = Field(
        default="",
        description="ETag of remote files as seen by Pin Sources, or a hash over several. It is not used, but changes "
        "the card's inputs when a file changes, so that no cached result is reused.",
    )
    license: str = Field(
        default="",
        description="License of the data, for the model card and its warnings; by default the license on the Hub.",
    )
    seed: int = Field(
        default=-1,
        ge=-1,
        description="-1 takes the first max_samples rows; 0 or more draws a random sample, which reads the whole "
        "source.",
    )
    mixture: list[Member] = Field(
        default=[],
        description="Several sources instead of the source above, each a mapping with `hf_dataset` (and `hf_config`, "
        "`hf_split`, `hf_revision`) or `path` (and `sha256`), `license`, `weight` (1 by default), `name`, and "
        "`columns` (new name to old name, to select and rename). Weights are shares of the result, which has "
        "max_samples rows, or as many as the sources allow at these shares; no row is repeated.",
    )
    source_column: str = Field(
        default="source", description="Column for the name of each row's source in a mixture; empty for none."
    )

    @field_validator("sha256")
    @classmethod
    def _is_checksum(cls, value: str) -> str:
        return check_checksums(value)

    @model_validator(mode="after")
    def _mixture_stands_alone(self) -> Self:
        if not self.mixture:
            return self
        conflicting = [name for name in ("jsonl_path", "jsonl_url", "sha256", "license") if getattr(self, name)]
        if conflicting:
            raise ValueError(
                f"{conflicting[0]} cannot be combined with mixture; set it for one of the mixture's sources"
            )
        labels = [member.label for member in self.mixture]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice:
            raise ValueError(f"two sources of the mixture have the name {twice!r}; set a different name for each")
        if self.max_samples and self.max_samples < len(labels):
            raise ValueError(f"max_samples = {self.max_samples} is less than one row for each of {len(labels)} sources")
        return self


def check_checksums(value: str) -> str:
    """Returns comma-separated SHA-256 checksums unchanged; raises ValueError for any other value."""
    for part in value.split(",") if value else []:
        digits = part.strip().lower().removeprefix("sha256:")
        if len(digits) != 64 or set(digits) - set("0123456789abcdef"):
            raise ValueError("a SHA-256 has 64 hexadecimal digits")
    return value
