"""Settings of Evaluate."""

import re
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from llm_finetune.components.shared.errors import nearest
from llm_finetune.components.shared.settings import CardSettings, split_names

TEXT_SCORES = ("rouge_l", "chrf")


class Settings(CardSettings):
    """Settings of Evaluate."""

    renamed: ClassVar[Mapping[str, str]] = {"judge_rival": "judge_baseline"}

    max_samples: int = Field(default=256, ge=0, description="Validation rows to measure, sampled at random; 0 for all.")
    generate_samples: int = Field(
        default=64, ge=0, description="Rows of these whose prompts are answered; 0 for no generation."
    )
    max_new_tokens: int = Field(default=128, ge=1, description="Maximum number of tokens of an answer.")
    generation_engine: Literal["auto", "transformers", "vllm"] = Field(
        default="auto",
        description="Engine that generates the answers: transformers; vllm, which must be installed; auto uses vLLM "
        "if it is installed, has a GPU and supports the adapter and its base, else transformers.",
    )
    few_shot: int = Field(
        default=5,
        ge=0,
        description="Training documents shown to the base model before each prompt, as a baseline that knows the "
        "format of the task; 0 for no such baseline. Needs train_tokens.",
    )
    temperature: float = Field(
        default=0.0,
        ge=0,
        description="If above 0, base and tuned model answer once more with this sampling temperature.",
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Cumulative probability of the tokens that are sampled from."
    )
    text_scores: str = Field(
        default="rouge_l,chrf",
        description="Text similarity scores of answers, separated by commas: rouge_l, chrf; empty for none.",
    )
    answer_format: Literal["auto", "json", "text"] = Field(
        default="auto",
        description="json scores answers as JSON objects, text does not; auto does if every reference is a JSON "
        "object.",
    )
    answer_pattern: str = Field(
        default="", description="Regular expression that a full answer must match; empty for none."
    )
    slice_by: str = Field(
        default="",
        description="Columns of the validation rows, separated by commas; losses are also reported per value.",
    )
    tokens_per_batch: int = Field(
        default=8192,
        ge=1,
        description="Maximum number of tokens in a batch, padding included; halved when memory runs out.",
    )
    tasks: str = Field(
        default="", description="Tasks of lm-evaluation-harness: names, or paths of YAML files, separated by commas."
    )
    task_limit: int = Field(
        default=0, ge=0, description="Number of documents of each task; 0 for all, as reliable scores need."
    )
    task_few_shot: int = Field(
        default=-1, ge=-1, description="Few-shot examples in a task's prompts; -1 for the task's own number."
    )
    task_chat_template: bool = Field(default=False, description="Apply the model's chat template to the tasks.")
    judge_endpoint: str = Field(
        default="",
        description="OpenAI-compatible URL of a model that judges pairs of answers, such as https://host/v1; "
        "its key comes from the environment variable JUDGE_API_KEY. Empty for no judge.",
    )
    judge_model: str = Field(default="", description="Name of the judging model.")
    judge_baseline: Literal["base", "base_few_shot", "served"] = Field(
        default="base",
        description="Candidate that the judge compares the tuned model with: base, base_few_shot or served.",
    )
    endpoint: str = Field(
        default="",
        description="OpenAI-compatible URL of a deployed model that answers the same prompts (vLLM's completions "
        "route); its key comes from the environment variable ENDPOINT_API_KEY. Empty for none.",
    )
    endpoint_model: str = Field(default="", description="Name of the deployed model.")
    request_timeout: float = Field(
        default=60.0, gt=0, description="Timeout of a request to judge or deployed model, in seconds."
    )
    concurrent_requests: int = Field(
        default=8, ge=1, description="Maximum number of concurrent requests to judge or deployed model."
    )
    seed: int = Field(
        default=42,
        description="Random seed of the sampled rows, the few-shot examples, sampling and the confidence intervals.",
    )

    @field_validator("text_scores")
    @classmethod
    def _validate_text_scores(cls, value: str) -> str:
        for name in split_names(value):
            if name not in TEXT_SCORES:
                raise ValueError(f"{name!r} is not a score{nearest(name, TEXT_SCORES)} ({', '.join(TEXT_SCORES)})")
        return value

    @field_validator("answer_pattern")
    @classmethod
    def _validate_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value

    @field_validator("judge_endpoint", "endpoint")
    @classmethod
    def _validate_url(cls, value: str) -> str:
        if value and not re.match(r"https?://[^/@\s]+(/\S*)?$", value):
            raise ValueError(
                "not a URL such as https://host/v1. A URL must not contain keys: they come from the environment"
            )
        return value

    @model_validator(mode="after")
    def _validate_endpoints(self) -> "Settings":
        for endpoint, model in (("judge_endpoint", "judge_model"), ("endpoint", "endpoint_model")):
            if bool(getattr(self, endpoint)) != bool(getattr(self, model)):
                raise ValueError(f"{endpoint} and {model} belong together: set both or neither")
            if getattr(self, endpoint) and not self.generate_samples:
                raise ValueError(f"{endpoint} has no prompts to answer: generate_samples is 0")
        if self.judge_endpoint and self.judge_baseline == "base_few_shot" and not self.few_shot:
            raise ValueError("judge_baseline = base_few_shot needs few_shot examples: few_shot is 0")
        if self.judge_endpoint and self.judge_baseline == "served" and not self.endpoint:
            raise ValueError("judge_baseline = served needs the endpoint of the served model: endpoint is empty")
        return self
