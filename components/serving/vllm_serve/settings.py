"""Settings of the card; kept apart from its work so that the recipe can be checked without importing that."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from llm_finetune.components.shared.questions import Messages
from llm_finetune.components.shared.settings import CardSettings

Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=40)]


class Settings(CardSettings):
    """Settings of the card; see `component.py` for their meaning."""

    deployment_name: Name = Field(
        default="llm-finetune-v1", description="Name of the deployment, and the model name that clients ask for."
    )
    port: int = Field(
        default=8001,
        ge=0,
        le=65535,
        description="Port on this machine with target local; 0 takes a free one. Unused on a cluster.",
    )
    max_batch_tokens: int = Field(
        default=8192, ge=1, description="Most tokens that one step of the engine works on, over all requests."
    )
    target: Literal["kserve", "local", "manifest"] = Field(
        default="kserve",
        description="kserve (InferenceService on this cluster), local (server process on this machine) or manifest "
        "(YAML for a GitOps repository, nothing is deployed).",
    )
    namespace: str = Field(default="", description="Namespace to deploy to; empty is the step's own.")
    replicas: int = Field(default=1, ge=1, description="Pods.")
    max_surge: int = Field(
        default=1,
        ge=0,
        description="Pods that an update may run beside the old ones; 0 ends the old pod first and needs no spare GPU.",
    )
    gpu_type: str = Field(default="nvidia.com/gpu", description="Resource name of the accelerator.")
    gpu_count: str = Field(default="1", pattern=r"^[0-9]+$", description="Accelerators per pod, as text; 0 for none.")
    gpu_memory_utilization: float = Field(
        default=0.9, gt=0, le=1, description="Share of the accelerator's memory that vLLM takes, 0 to 1."
    )
    cpu: str = Field(default="4", description="CPU request per pod.")
    memory: str = Field(default="24Gi", description="Memory request and limit per pod.")
    node_selector: dict[str, str] = Field(default_factory=dict, description="Labels of the nodes to run on.")
    max_model_len: int = Field(
        default=0, ge=0, description="Longest request and answer together, in tokens; 0 is the model's own."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Type to compute in: float32, bfloat16, float16, or auto, which is float32 for weights stored "
        "in float32, and vLLM's own choice for others and for a base with adapters.",
    )
    serve_adapter: bool = Field(
        default=False, description="Serve the LoRA adapter on its base instead of the merged weights."
    )
    adapter_base: str = Field(
        default="",
        description="Base model of the adapter: folder or URI; empty is what the adapter names. One on the Hub is "
        "fetched at the commit that the adapter was trained on, unless hf://owner/model:revision says another.",
    )
    adapter_service: str = Field(
        default="",
        pattern=r"^([a-z]([-a-z0-9]*[a-z0-9])?)?$",
        max_length=40,
        description="InferenceService of the base that several adapters share, and the base's model name; empty is "
        "the deployment's name and `-base`. Unused with target local.",
    )
    remove_adapters: list[str] = Field(
        default_factory=list, description="Names of adapters to take off the shared base in the same update."
    )
    canary_percent: int = Field(
        default=0,
        ge=0,
        le=99,
        description="Share of the traffic for the new revision, 1 to 99; 0 replaces the old one, or promotes the "
        "canary that serves the same model.",
    )
    candidate_first: bool = Field(
        default=False,
        description="Deploy and ask a service of its own (the name and `-candidate`) before the real one is "
        "touched; takes its accelerators for that time.",
    )
    runtime: str = Field(default="llm-vllm", description="Name of the ServingRuntime.")
    service_account: str = Field(
        default="llm-serving", description="Service account of the pods, which holds the secrets of the model's store."
    )
    storage_uri: str = Field(
        default="",
        pattern=r"^((gs|s3|minio|oci|pvc|hf)://\S+)?$",
        description="Where the cluster finds the model (s3://, gs://, pvc://, oci:// or hf://), such as the copy "
        "that Merge & Export made at its export_uri; empty is where the artifact lies.",
    )
    storage_endpoint: str = Field(
        default="", description="host:port of an S3-compatible store; empty is the one that the artifact names."
    )
    storage_secret: str = Field(
        default="", description="Secret of the service account with the store's keys; empty takes whichever fits."
    )
    deployment_mode: Literal["Standard", "Knative", "RawDeployment", "Serverless"] = Field(
        default="Standard", description="KServe's deployment mode, Standard or Knative, for a new deployment."
    )
    ready_timeout: int = Field(default=1800, ge=1, description="Seconds until the model must be ready.")
    unschedulable_timeout: int = Field(
        default=1200, ge=0, description="Seconds that pods may wait for a node before the deployment is given up."
    )
    request_timeout: int = Field(default=120, ge=1, description="Seconds for one answer.")
    keep_failed: bool = Field(
        default=False, description="Leave a first deployment that failed in the cluster, to look at it."
    )
    golden_prompts: list[str | Messages] = Field(
        default_factory=list,
        description="Questions that must be answered: texts, or lists of {role, content}; empty takes two "
        "validation rows.",
    )
    answer_tokens: int = Field(default=128, ge=1, description="Most tokens of an answer to them.")
    require_stop: bool = Field(
        default=True, description="On a cluster, refuse a model that ends none of its answers by itself."
    )

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
