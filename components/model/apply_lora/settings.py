"""Settings of the Apply LoRA card."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from llm_finetune.components.shared.errors import nearest
from llm_finetune.components.shared.settings import CardSettings, split_names

INITS = ("default", "gaussian", "orthogonal", "olora", "pissa")
# Initial values that an adapter's file alone cannot bring back, or that need what this card does not have.
REFUSED_INITS = {
    "pissa_niter": "its random decomposition comes out differently when the adapter is loaded again: use pissa",
    "loftq": "it needs the full-precision weights on a GPU while the adapter is made",
    "eva": "it needs activations from a pass over the data: use default",
    "corda": "it needs activations from a pass over the data: use default",
    "lora_ga": "it needs gradients from a pass over the data: use default",
}


class Settings(CardSettings):
    """Settings of the Apply LoRA card; `component.py` describes them."""

    r: int = Field(default=16, ge=1, le=1024, description="Rank of the adapter.")
    lora_alpha: int = Field(
        default=32, ge=1, description="Scale: the adapter's product is multiplied by lora_alpha / r."
    )
    lora_dropout: float = Field(default=0.05, ge=0, lt=1, description="Dropout before the adapter.")
    target_modules: str = Field(
        default="q_proj,k_proj,v_proj,o_proj",
        description="Names of modules separated by commas, or all-linear for every linear module but the head.",
    )
    use_rslora: bool = Field(default=False, description="Scale by lora_alpha / sqrt(r), which keeps high ranks stable.")
    use_dora: bool = Field(
        default=False,
        description="Learn magnitude and direction apart (DoRA); slower, and the adapter can only be served merged.",
    )
    init: str = Field(default="default", description="Initial values: default, gaussian, orthogonal, olora or pissa.")
    modules_to_save: str = Field(
        default="", description="Modules to train in full beside the adapter, separated by commas."
    )
    max_length: int = Field(default=1024, ge=1, description="Tokens of the longest row; only for the memory estimate.")
    batch_size: int = Field(
        default=4, ge=1, description="Rows per optimizer step and device; only for the memory estimate."
    )
    tokens_per_micro_batch: int = Field(
        default=16384, ge=1, description="Most tokens that go through the model at once; only for the memory estimate."
    )
    gradient_checkpointing: Literal["on", "off", "auto"] = Field(
        default="auto", description="on, off or auto (on where it does not fit without); only for the memory estimate."
    )
    gpu_memory_gib: float = Field(
        default=0.0, ge=0, description="Memory of the training GPU, to say whether the training fits; 0 if unknown."
    )

    @field_validator("target_modules")
    @classmethod
    def _some_target(cls, value: str) -> str:
        if not split_names(value):
            raise ValueError("names no module; give names separated by commas, or all-linear")
        return value

    @field_validator("init")
    @classmethod
    def _reloadable(cls, value: str) -> str:
        if value not in INITS:
            reason = next((why for name, why in REFUSED_INITS.items() if value.startswith(name)), "")
            raise ValueError(f"{reason or 'unknown' + nearest(value, INITS)} (known: {', '.join(INITS)})")
        return value

    @model_validator(mode="after")
    def _even_rank(self) -> Self:
        if self.init == "orthogonal" and self.r % 2:
            raise ValueError(f"init = orthogonal needs an even r, and r = {self.r}")
        return self

    @property
    def targets(self) -> list[str]:
        """The target modules by name."""
        return split_names(self.target_modules)

    @property
    def saved(self) -> list[str]:
        """The modules to train in full."""
        return split_names(self.modules_to_save)
