"""Settings of the Load Base Model card."""

from typing import Literal

from pydantic import Field

from llm_finetune.components.shared.settings import CardSettings


class Settings(CardSettings):
    """Settings of the Load Base Model card."""

    model_name: str = Field(
        default="TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        min_length=1,
        description="Hub id (owner/name), or a folder such as a mounted volume.",
    )
    load_in_4bit: bool = Field(
        default=True,
        description="Whether training keeps the frozen weights in 4 bit (NF4, QLoRA); the files are not changed.",
    )
    cache_dir: str = Field(
        default="/tmp/hf_cache",
        min_length=1,
        description="Folder for downloads; on a volume, later runs reuse them.",
    )
    revision: str = Field(
        default="",
        description="Branch, tag or commit of a Hub id, or the sha256:... that an earlier run reported for a folder. "
        "Empty for the default branch, or the folder as it is; the revision is recorded.",
    )
    commit: str = Field(
        default="",
        description="Commit that Pin Sources resolved revision to. Only part of the cache key: a model that has "
        "changed on the Hub is loaded again.",
    )
    store: Literal["copy", "reference"] = Field(
        default="copy",
        description="copy stores the weights in the artifact; reference leaves them in cache_dir, or in the folder "
        "model_name, and pins them. Later cards read them there, so it must be a volume that they mount too.",
    )
