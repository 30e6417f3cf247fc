"""The recipe's section `cluster`: where a run's cards are placed and which volumes and secrets they use."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llm_finetune.components.shared.settings import CardSettings

NAME = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"


class Toleration(BaseModel):
    """A taint that the GPU cards put up with, as Kubernetes writes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str = ""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    tolerationSeconds: int | None = None

    @model_validator(mode="after")
    def _possible(self) -> "Toleration":
        if self.operator == "Exists" and self.value:
            raise ValueError("operator Exists takes no value")
        if self.operator == "Equal" and not self.key:
            raise ValueError("operator Equal needs a key; operator Exists without one tolerates every taint")
        return self


# As NVIDIA's operator and the cloud providers mark GPU nodes.
GPU_TAINT = Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")


class ClusterSettings(CardSettings):
    """Where a run's cards are placed and which volumes and secrets they use."""

    node_selector: dict[str, str] = Field(
        default_factory=dict,
        description="Labels of the nodes for the cards that need a GPU, and for the server unless it has its own.",
    )
    tolerations: list[Toleration] = Field(
        default_factory=lambda: [GPU_TAINT], description="Tolerations for the taints of those nodes."
    )
    model_cache_claim: str = Field(
        default="llm-finetune-model-cache",
        pattern=NAME,
        description="Claim of the volume of base models (pipelines compiled with model_cache).",
    )
    checkpoint_claim: str = Field(
        default="llm-finetune-checkpoints",
        pattern=NAME,
        description="Claim of the volume of checkpoints (pipelines compiled with checkpoints).",
    )
    hub_token_secret: str = Field(
        default="hf-token",
        pattern=NAME,
        description="Secret whose key `token` is a Hugging Face token; it need not exist.",
    )
    object_store_secret: str = Field(
        default="object-store",
        pattern=NAME,
        description="Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL and AWS_REGION, for "
        "datasets, checkpoints and exports at s3://; it need not exist.",
    )
    api_keys_secret: str = Field(
        default="api-keys",
        pattern=NAME,
        description="Secret with JUDGE_API_KEY, ENDPOINT_API_KEY, WANDB_API_KEY or MLFLOW_TRACKING_…, whichever the "
        "recipe makes use of; it need not exist.",
    )

    @property
    def outputs(self) -> dict[str, Any]:
        """The settings as Check Recipe passes them on."""
        return self.model_dump(mode="json", exclude_none=True)
