"""Settings of the vLLM Serve card."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from llm_finetune.components.shared.questions import Messages
from llm_finetune.components.shared.settings import CardSettings

Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=40)]


class Settings(CardSettings):
    """Settings of the vLLM Serve card."""

    deployment_name: Name = Field(
        default="llm-finetune-v1", description="Name of the deployment, and the model name in requests."
    )
    port: int = Field(
        default=8001,
        ge=0,
        le=65535,
        description="Port on this machine for target local; 0 selects a free one. Unused on a cluster.",
    )
    max_batch_tokens: int = Field(
        default=8192, ge=1, description="Maximum number of tokens per engine step, over all requests."
    )
    target: Literal["kserve", "local", "manifest"] = Field(
        default="kserve",
        description="kserve (InferenceService on this cluster), local (server process on this machine) or manifest "
        "(YAML for a GitOps repository, without a deployment).",
    )
    namespace: str = Field(default="", description="Namespace to deploy to; empty for the namespace of the step.")
    replicas: int = Field(default=1, ge=1, description="Number of pods.")
    max_surge: int = Field(
        default=1,
        ge=0,
        description="Additional pods during an update; with 0, the old pod is stopped first, which needs no spare GPU.",
    )
    gpu_type: str = Field(default="nvidia.com/gpu", description="Resource name of the accelerator.")
    gpu_count: str = Field(default="1", pattern=r"^[0-9]+$", description="Accelerators per pod, as text; 0 for none.")
    gpu_memory_utilization: float = Field(
        default=0.9, gt=0, le=1, description="Fraction of the accelerator's memory that vLLM uses, 0 to 1."
    )
    cpu: str = Field(default="4", description="CPU request per pod.")
    memory: str = Field(default="24Gi", description="Memory request and limit per pod.")
    node_selector: dict[str, str] = Field(default_factory=dict, description="Node labels that the pods require.")
    max_model_len: int = Field(
        default=0, ge=0, description="Maximum length of request and answer together, in tokens; 0 for the model's own."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Type of the computation: float32, bfloat16, float16, or auto: float32 for weights stored in "
        "float32, else vLLM's own choice, also for a base with adapters.",
    )
    serve_adapter: bool = Field(
        default=False, description="Serve the LoRA adapter on its base model instead of the merged weights."
    )
    adapter_base: str = Field(
        default="",
        description="Base model of the adapter: folder or URI; empty for the one in the adapter's configuration. From "
        "the Hub, the commit that the adapter was trained on is loaded, unless hf://owner/model:revision is given.",
    )
    adapter_service: str = Field(
        default="",
        pattern=r"^([a-z]([-a-z0-9]*[a-z0-9])?)?$",
        max_length=40,
        description="InferenceService of the base that several adapters share, and model name of the base; empty for "
        "the deployment name and `-base`. Unused with target local.",
    )
    remove_adapters: list[str] = Field(
        default_factory=list, description="Names of adapters to remove from the shared base in the same update."
    )
    canary_percent: int = Field(
        default=0,
        ge=0,
        le=99,
        description="Share of the traffic for the new revision in percent, 1 to 99; 0 replaces the old revision, or "
        "promotes the canary of the same model.",
    )
    candidate_first: bool = Field(
        default=False,
        description="Deploy and test a separate service (deployment name and `-candidate`) before the service is "
        "replaced; needs its accelerators during that time.",
    )
    runtime: str = Field(default="llm-vllm", description="Name of the ServingRuntime.")
    service_account: str = Field(
        default="llm-serving", description="Service account of the pods, with the secrets of the model's store."
    )
    storage_uri: str = Field(
        default="",
        pattern=r"^((gs|s3|minio|oci|pvc|hf)://\S+)?$",
        description="URI from which the cluster loads the model (s3://, gs://, pvc://, oci:// or hf://), such as "
        "export_uri of Merge & Export; empty for the URI of the artifact.",
    )
    storage_endpoint: str = Field(
        default="", description="host:port of an S3-compatible store; empty for the one in the artifact's metadata."
    )
    storage_secret: str = Field(
        default="", description="Secret of the service account with the keys of the store; empty for any matching one."
    )
    deployment_mode: Literal["Standard", "Knative", "RawDeployment", "Serverless"] = Field(
        default="Standard", description="Deployment mode of KServe for a new deployment, Standard or Knative."
    )
    ready_timeout: int = Field(default=1800, ge=1, description="Seconds to wait for the model to be ready.")
    unschedulable_timeout: int = Field(
        default=1200, ge=0, description="Seconds that a pod may be unschedulable before the deployment fails."
    )
    request_timeout: int = Field(default=120, ge=1, description="Maximum seconds per answer.")
    keep_failed: bool = Field(
        default=False, description="Keep a first deployment that failed in the cluster, for debugging."
    )
    golden_prompts: list[str | Messages] = Field(
        default_factory=list,
        description="Test prompts that the model must answer: texts, or lists of {role, content}; empty for two "
        "validation rows.",
    )
    answer_tokens: int = Field(default=128, ge=1, description="Maximum number of tokens of an answer to a test prompt.")
    require_stop: bool = Field(
        default=True, description="On a cluster, reject a model if none of its answers ends within answer_tokens."
    )

    @field_validator("golden_prompts")
    @classmethod
    def _conversations(cls, prompts: list[str | Messages]) -> list[str | Messages]:
        for prompt in prompts:
            turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            if not turns or any(set(turn) != {"role", "content"} for turn in turns) or turns[-1]["role"] != "user":
                raise ValueError(
                    f"{prompt!r} is neither a text nor a list of {{role, content}} that ends with role user"
                )
            if not turns[-1]["content"].strip():
                raise ValueError("a prompt is empty")
        return prompts

    @model_validator(mode="after")
    def _check_adapter_settings(self) -> Self:
        for name in ("adapter_service", "remove_adapters"):
            if getattr(self, name) and not self.serve_adapter:
                raise ValueError(f"{name} needs serve_adapter = True")
        if self.serve_adapter and (self.canary_percent or self.candidate_first):
            raise ValueError(
                "serve_adapter does not support canary_percent and candidate_first: deploy the new adapter with "
                "another deployment_name, beside the old one on the same base"
            )
        if self.serve_adapter and self.adapter_service == self.deployment_name:
            raise ValueError(
                f"adapter_service = deployment_name = {self.deployment_name!r}: these are the model names of base and "
                "adapter, which must differ"
            )
        return self

    @property
    def conversations(self) -> list[Messages]:
        """The golden prompts, each as a list of messages."""
        return [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in self.golden_prompts]

    @property
    def gpus(self) -> int:
        """Accelerators per pod."""
        return int(self.gpu_count)

    @property
    def service_name(self) -> str:
        """Name of the InferenceService: the deployment's name, or with an adapter the name of its base's service."""
        return (self.adapter_service or f"{self.deployment_name}-base") if self.serve_adapter else self.deployment_name
