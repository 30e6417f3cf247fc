"""Settings of the Load Dataset card."""

from typing import Literal

from pydantic import Field, field_validator

from llm_finetune.components.shared.settings import CardSettings


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
    seed: int = Field(-1, ge=-1)

    @field_validator("sha256")
    @classmethod
    def _is_checksum(cls, value: str) -> str:
        digits = value.lower().removeprefix("sha256:")
        if digits and (len(digits) != 64 or set(digits) - set("0123456789abcdef")):
            raise ValueError("a SHA-256 has 64 hexadecimal digits")
        return value
