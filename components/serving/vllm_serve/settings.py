"""Settings of the card; kept apart from its work so that the recipe can be checked without importing that."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from llm_finetune.components.shared.questions import Messages
from llm_finetune.components.shared.settings import CardSettings

Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=40)]


class Settings(CardSettings):
    """Settings of the card; see `component.py` for their meaning."""

    deployment_name: Name = "llm-finetune-v1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8001
    max_batch_tokens: Annotated[int, Field(ge=1)] = 8192
    target: Literal["kserve", "local", "manifest"] = "kserve"
    namespace: str = ""
    replicas: Annotated[int, Field(ge=1)] = 1
    max_surge: Annotated[int, Field(ge=0)] = 1
    gpu_type: str = "nvidia.com/gpu"
    gpu_count: Annotated[str, Field(pattern=r"^[0-9]+$")] = "1"
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    cpu: str = "4"
    memory: str = "24Gi"
    node_selector: dict[str, str] = Field(default_factory=dict)
    max_model_len: Annotated[int, Field(ge=0)] = 0
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    serve_adapter: bool = False
    adapter_base: str = ""
    adapter_service: Annotated[str, Field(pattern=r"^([a-z]([-a-z0-9]*[a-z0-9])?)?$", max_length=40)] = ""
    remove_adapters: list[str] = Field(default_factory=list)
    canary_percent: Annotated[int, Field(ge=0, le=99)] = 0
    candidate_first: bool = False
    runtime: str = "llm-vllm"
    service_account: str = "llm-serving"
    storage_uri: Annotated[str, Field(pattern=r"^((gs|s3|minio|oci|pvc|hf)://\S+)?$")] = ""
    storage_endpoint: str = ""
    storage_secret: str = ""
    deployment_mode: Literal["Standard", "Knative", "RawDeployment", "Serverless"] = "Standard"
    ready_timeout: Annotated[int, Field(ge=1)] = 1800
    unschedulable_timeout: Annotated[int, Field(ge=0)] = 1200
    request_timeout: Annotated[int, Field(ge=1)] = 120
    keep_failed: bool = False
    golden_prompts: list[str | Messages] = Field(default_factory=list)
    answer_tokens: Annotated[int, Field(ge=1)] = 128
    require_stop: bool = True

    @field_validator("golden_prompts")
    @classmethod
    def _conversations(cls, prompts: list[Any]) -> list[Any]:
        for prompt in prompts:
            turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            if not turns or any(set(turn) != {"role", "content"} for turn in turns) or turns[-1]["role"] != "user":
                raise ValueError(f"{prompt!r} is neither a text nor a list of role and content that ends with the user")
            if not turns[-1]["content"].strip():
                raise ValueError("a prompt is empty")
        return prompts

    @model_validator(mode="after")
    def _adapters_need_a_base(self) -> "Settings":
        for name in ("adapter_service", "remove_adapters"):
            if getattr(self, name) and not self.serve_adapter:
                raise ValueError(f"{name} is for serve_adapter = True, which is not set")
        if self.serve_adapter and (self.canary_percent or self.candidate_first):
            raise ValueError(
                "serve_adapter with canary_percent or candidate_first: an adapter is already apart from the others on "
                "its base; serve the new one under its own deployment_name and let clients ask for it"
            )
        if self.serve_adapter and self.adapter_service == self.deployment_name:
            raise ValueError(
                f"adapter_service = deployment_name = {self.deployment_name!r}: the base answers to the first name and "
                "the adapter to the second, so they must differ"
            )
        return self

    @property
    def conversations(self) -> list[Messages]:
        """The golden prompts, each as a list of messages."""
        return [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in self.golden_prompts]

    @property
    def service_name(self) -> str:
        """Name of the InferenceService: the deployment's, or that of the base which carries the adapter."""
        return (self.adapter_service or f"{self.deployment_name}-base") if self.serve_adapter else self.deployment_name
