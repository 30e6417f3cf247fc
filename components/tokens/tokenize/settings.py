"""Settings of the Tokenize card."""

from typing import Literal

from pydantic import Field

from llm_finetune.components.shared.settings import CardSettings


class Settings(CardSettings):
    """Settings of the Tokenize card."""

    model_name: str = Field(
        default="TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        description="Hub id or folder of the tokenizer, used without model_config.",
    )
    max_length: int = Field(default=1024, ge=8, description="Maximum tokens in a row.")
    packing: bool = Field(
        default=True,
        description="Whether to pack several documents into each training row (best fit, without attention across "
        "documents).",
    )
    overlength: Literal["drop", "truncate", "error"] = Field(
        default="drop", description="What to do with documents longer than max_length: drop, truncate or error."
    )
    train_on: Literal["all", "last"] = Field(
        default="all", description="Answers of a conversation that are trained: all, or last."
    )
    num_proc: int = Field(default=0, ge=0, description="Threads of the tokenizer; 0 for all cores.")
    seed: int = Field(default=42, description="Seed of the order of packed rows.")
