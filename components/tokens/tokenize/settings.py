"""Settings of the Tokenize card."""

from typing import Literal

from pydantic import Field

from llm_finetune.components.shared.settings import CardSettings


class Settings(CardSettings):
    """Settings of the Tokenize card; `component.py` describes them."""

    model_name: str = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
    max_length: int = Field(1024, ge=8)
    packing: bool = True
    overlength: Literal["drop", "truncate", "error"] = "drop"
    train_on: Literal["all", "last"] = "all"
    num_proc: int = Field(0, ge=0)
    seed: int = 42
