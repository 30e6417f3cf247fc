"""Settings of the Load Base Model card."""

from typing import Literal

from pydantic import Field

from llm_finetune.components.shared.settings import CardSettings


class Settings(CardSettings):
    """Settings of the Load Base Model card; `component.py` describes them."""

    model_name: str = Field("TinyLlama/TinyLlama-1.1B-Chat-v1.0", min_length=1)
    load_in_4bit: bool = True
    cache_dir: str = Field("/tmp/hf_cache", min_length=1)
    revision: str = ""
    commit: str = ""
    store: Literal["copy", "reference"] = "copy"
