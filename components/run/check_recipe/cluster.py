"""The recipe's section `cluster`: node placement, volumes and secrets of the cards."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llm_finetune.components.shared.settings import CardSettings

NAME = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"


class Toleration(BaseModel):
    """A toleration of the GPU cards, in the form of the Kubernetes API."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str = ""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    tolerationSeconds: int | None = None

    @model_validator(mode="after")
    def _check_operator(self) -> "Toleration":
        if self.operator == "Exists" and self.value:
            raise ValueError("operator Exists must not have a value")
        if self.operator == "Equal" and not self.key:
            raise ValueError("operator Equal needs a key; operator Exists without one tolerates every taint")
        return self


# The taint of GPU nodes with NVIDIA's GPU operator and at cloud providers.
GPU_TAINT = Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")


class ClusterSettings(CardSettings):
    """Node placement, volumes and secrets of the cards."""

    node_selector: dict[str, str] = Field(
        default_factory=dict,
        description="Node selector of the GPU cards, and of the server unless it has its own.",
    )
    tolerations: list[Toleration] = Field(
        default_factory=lambda: [GPU_TAINT], description="Tolerations of the GPU cards."
    )
    model_cache_claim: str = Field(
        default="llm-finetune-model-cache",
        pattern=NAME,
        description="PersistentVolumeClaim for base models (compile option model_cache).",
    )
    checkpoint_claim: str = Field(
        default="llm-finetune-checkpoints",
        pattern=NAME,
        description="PersistentVolumeClaim for checkpoints (compile option checkpoints).",
    )
    hub_token_secret: str = Field(
        default="hf-token",
        pattern=NAME,
        description="Secret with a Hugging Face token under the key `token`; optional.",
    )
    object_store_secret: str = Field(
        default="object-store",
        pattern=NAME,
        description="Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL and AWS_REGION for "
        "datasets, checkpoints and exports at s3://; optional.",
    )
    api_keys_secret: str = Field(
        default="api-keys",
        pattern=NAME,
        description="Secret with those of JUDGE_API_KEY, ENDPOINT_API_KEY, WANDB_API_KEY and MLFLOW_TRACKING_… that "
        "the recipe needs; optional.",
    )

    @property
    def outputs(self) -> dict[str, Any]:
        """Values of the outputs of Check Recipe."""
        return self.model_dump(mode="json", exclude_none=True)
