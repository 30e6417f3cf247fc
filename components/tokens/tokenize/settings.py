"""Settings of the Tokenize card."""

from typing import Literal

from pydantic import Field

from llm_finetune.components.shared.settings import CardSettings


class Settings(CardSettings):
    """Settings of the Tokenize card; `component.py` describes them."""

    model_name: str = Field(
        default="TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        description="Hub id or folder to take the tokenizer from when no model_config is given.",
    )
    max_length: int = Field(default=1024, ge=8, description="Most tokens in a row.")
    packing: bool = Field(
        default=True,
        description="Fill each training row with several documents (best fit; documents do not see each other).",
    )
    overlength: Literal["drop", "truncate", "error"] = Field(
        default="drop", description="What happens to a document longer than max_length: drop, truncate or error."
    )
    train_on: Literal["all", "last"] = Field(
        default="all", description="Answers of a conversation that are trained: all, or the last one alone."
    )
    num_proc: int = Field(default=0, ge=0, description="Threads of the tokenizer; 0 uses all cores.")
    seed: int = Field(default=42, description="Seed of the order of packed rows.")
