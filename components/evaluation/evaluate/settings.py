"""Settings of the Evaluate card."""

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from llm_finetune.components.shared.errors import nearest
from llm_finetune.components.shared.settings import CardSettings, split_names

TEXT_SCORES = ("rouge_l", "chrf")


class Settings(CardSettings):
    """Settings of the Evaluate card; `component.py` describes them."""

    max_samples: int = Field(default=256, ge=0, description="Validation rows to measure, drawn at random; 0 means all.")
    generate_samples: int = Field(
        default=64, ge=0, description="Rows of them whose prompts are answered too; 0 skips generation."
    )
    max_new_tokens: int = Field(default=128, ge=1, description="Most tokens of an answer.")
    generation_engine: Literal["auto", "transformers", "vllm"] = Field(
        default="auto",
        description="Who writes the answers: transformers; vllm, which must be installed; auto takes vLLM where it "
        "is installed with a GPU and can serve this adapter on its base, and transformers elsewhere.",
    )
    few_shot: int = Field(
        default=5,
        ge=0,
        description="Training documents shown to the base model before each prompt, for a rival that knows the "
        "task's form; 0 leaves it out. Needs train_tokens.",
    )
    temperature: float = Field(
        default=0.0,
        ge=0,
        description="Above 0, base and tuned model answer once more with sampling at this temperature.",
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Share of the probability that sampled tokens are drawn from."
    )
    text_scores: str = Field(
        default="rouge_l,chrf",
        description="Scores of answers as text, separated by commas: rouge_l, chrf; empty for none.",
    )
    answer_format: Literal["auto", "json", "text"] = Field(
        default="auto",
        description="json scores answers as JSON objects, text does not; auto does where every reference is one.",
    )
    answer_pattern: str = Field(
        default="", description="Regular expression that a whole answer must match; empty for none."
    )
    slice_by: str = Field(
        default="",
        description="Columns of the validation rows whose values are compared one by one, separated by commas.",
    )
    tokens_per_batch: int = Field(
        default=8192, ge=1, description="Most tokens in a batch, padding included; halved whenever memory runs out."
    )
    tasks: str = Field(
        default="", description="Tasks of lm-evaluation-harness: names, or paths of YAML files, separated by commas."
    )
    task_limit: int = Field(
        default=0, ge=0, description="First documents of each task to ask; 0 asks all, as decisions need."
    )
    task_few_shot: int = Field(
        default=-1, ge=-1, description="Examples in a task's prompts; -1 takes the task's own number."
    )
    task_chat_template: bool = Field(default=False, description="Put tasks into the model's chat template.")
    judge_endpoint: str = Field(
        default="",
        description="OpenAI-compatible address of a model that judges pairs of answers, such as https://host/v1; "
        "its key comes from the environment variable JUDGE_API_KEY. Empty for no judge.",
    )
    judge_model: str = Field(default="", description="Name of the judging model.")
    judge_rival: Literal["base", "base_few_shot", "served"] = Field(
        default="base", description="Whose answers the tuned model's are judged against: base, base_few_shot or served."
    )
    endpoint: str = Field(
        default="",
        description="OpenAI-compatible address of a deployed model that answers the same prompts (vLLM's "
        "completions route); its key comes from ENDPOINT_API_KEY. Empty for none.",
    )
    endpoint_model: str = Field(default="", description="Name of the deployed model.")
    request_timeout: float = Field(
        default=60.0, gt=0, description="Seconds that judge and deployed model may take for one answer."
    )
    concurrent_requests: int = Field(default=8, ge=1, description="Requests to them in flight.")
    seed: int = Field(
        default=42, description="Seed of the drawn rows, the examples, sampling and the confidence intervals."
    )

    @field_validator("text_scores")
    @classmethod
    def _known_scores(cls, value: str) -> str:
        for name in split_names(value):
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
