"""Settings of the Load Base Model card."""

from typing import Literal

from pydantic import Field

from llm_finetune.components.shared.settings import CardSettings


class Settings(CardSettings):
    """Settings of the Load Base Model card; `component.py` describes them."""

    model_name: str = Field(
        default="TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        min_length=1,
        description="Hub id (owner/name) or a folder, such as a mounted volume.",
    )
    load_in_4bit: bool = Field(
        default=True,
        description="Whether training keeps the frozen weights in 4 bit (NF4, QLoRA); the files stay as they are.",
    )
    cache_dir: str = Field(
        default="/tmp/hf_cache",
        min_length=1,
        description="Where downloads are kept; a volume here saves the next run the download.",
    )
    revision: str = Field(
        default="",
        description="Branch, tag or commit of a Hub id, or the sha256:... of a folder as an earlier run reported "
        "it. Empty takes the default branch, or the folder as it is; what was found is recorded.",
    )
    commit: str = Field(
        default="",
        description="What Pin Sources saw that revision means now. Nothing is done with it: a model that has "
        "changed on the Hub is another input by it, for which no earlier result is taken from the cache.",
    )
    store: Literal["copy", "reference"] = Field(
        default="copy",
        description="copy puts the weights into the artifact; reference leaves them in cache_dir, or in the folder "
        "that model_name is, and pins them: later cards read them there, so it has to be a volume that they mount "
        "too.",
    )
