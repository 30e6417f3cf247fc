"""Settings of the Evaluate card."""

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from llm_finetune.components.shared.errors import nearest
from llm_finetune.components.shared.settings import CardSettings, listed

TEXT_SCORES = ("rouge_l", "chrf")


class Settings(CardSettings):
    """Settings of the Evaluate card; `component.py` describes them."""

    max_samples: int = Field(256, ge=0)
    generate_samples: int = Field(64, ge=0)
    max_new_tokens: int = Field(128, ge=1)
    generation_engine: Literal["auto", "transformers", "vllm"] = "auto"
    few_shot: int = Field(5, ge=0)
    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    text_scores: str = "rouge_l,chrf"
    answer_format: Literal["auto", "json", "text"] = "auto"
    answer_pattern: str = ""
    slice_by: str = ""
    tokens_per_batch: int = Field(8192, ge=1)
    tasks: str = ""
    task_limit: int = Field(0, ge=0)
    task_few_shot: int = Field(-1, ge=-1)
    task_chat_template: bool = False
    judge_endpoint: str = ""
    judge_model: str = ""
    judge_rival: Literal["base", "base_few_shot", "served"] = "base"
    endpoint: str = ""
    endpoint_model: str = ""
    request_timeout: float = Field(60.0, gt=0)
    concurrent_requests: int = Field(8, ge=1)
    seed: int = 42

    @field_validator("text_scores")
    @classmethod
    def _known_scores(cls, value: str) -> str:
        for name in listed(value):
            if name not in TEXT_SCORES:
                raise ValueError(f"{name!r} is no score{nearest(name, TEXT_SCORES)} ({', '.join(TEXT_SCORES)})")
        return value

    @field_validator("answer_pattern")
    @classmethod
    def _readable_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value

    @field_validator("judge_endpoint", "endpoint")
    @classmethod
    def _plain_address(cls, value: str) -> str:
        if value and not re.match(r"https?://[^/@\s]+(/\S*)?$", value):
            raise ValueError(
                "not an address such as https://host/v1. Keys do not belong into it: they come from the environment"
            )
        return value

    @model_validator(mode="after")
    def _whole_servers(self) -> "Settings":
        for endpoint, model in (("judge_endpoint", "judge_model"), ("endpoint", "endpoint_model")):
            if bool(getattr(self, endpoint)) != bool(getattr(self, model)):
                raise ValueError(f"{endpoint} and {model} belong together: give both or neither")
            if getattr(self, endpoint) and not self.generate_samples:
                raise ValueError(f"{endpoint} has no prompts to answer: generate_samples is 0")
        if self.judge_endpoint and self.judge_rival == "base_few_shot" and not self.few_shot:
            raise ValueError("judge_rival = base_few_shot needs few_shot examples: few_shot is 0")
        if self.judge_endpoint and self.judge_rival == "served" and not self.endpoint:
            raise ValueError("judge_rival = served needs the endpoint of the served model: endpoint is empty")
        return self
