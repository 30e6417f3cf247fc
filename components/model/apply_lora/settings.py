"""Settings of the Apply LoRA card."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from llm_finetune.components.shared.errors import nearest
from llm_finetune.components.shared.name_lists import NameList
from llm_finetune.components.shared.settings import CardSettings, split_names

INITS = ("default", "gaussian", "orthogonal", "olora", "pissa")
# Initializations that an adapter's files alone cannot restore, or that need data which this card does not have.
REFUSED_INITS = {
    "pissa_niter": "its random decomposition differs when the adapter is loaded again: use pissa",
    "loftq": "it needs the full-precision weights on a GPU when the adapter is created",
    "eva": "it needs activations from a pass over the data: use default",
    "corda": "it needs activations from a pass over the data: use default",
    "lora_ga": "it needs gradients from a pass over the data: use default",
}


class Settings(CardSettings):
    """Settings of the Apply LoRA card."""

    r: int = Field(default=16, ge=1, le=1024, description="Rank of the adapter.")
    lora_alpha: int = Field(
        default=32, ge=1, description="Scale: the adapter's output is multiplied by lora_alpha / r."
    )
    lora_dropout: float = Field(default=0.05, ge=0, lt=1, description="Dropout probability of the adapter's input.")
    target_modules: NameList = Field(
        default="q_proj,k_proj,v_proj,o_proj",
        description="Names of the modules to adapt, separated by commas or as a list; all-linear for every linear "
        "module except the head.",
    )
    use_rslora: bool = Field(
        default=False, description="Scale by lora_alpha / sqrt(r) (rsLoRA), which is stable at high ranks."
    )
    use_dora: bool = Field(
        default=False,
        description="Train magnitude and direction separately (DoRA); slower, and the adapter can only be served "
        "merged.",
    )
    init: str = Field(
        default="default", description="Initialization of the adapter: default, gaussian, orthogonal, olora or pissa."
    )
    modules_to_save: NameList = Field(
        default="",
        description="Names of modules to train in full in addition to the adapter, separated by commas or as a list.",
    )
    max_length: int = Field(default=1024, ge=1, description="Maximum tokens per row; only for the memory estimate.")
    batch_size: int = Field(
        default=4, ge=1, description="Rows per optimizer step and device; only for the memory estimate."
    )
    tokens_per_micro_batch: int = Field(
        default=16384, ge=1, description="Maximum tokens per micro-batch of packed rows; only for the memory estimate."
    )
    gradient_checkpointing: Literal["on", "off", "auto"] = Field(
        default="auto",
        description="on, off or auto (on if the training does not fit without it); only for the memory estimate.",
    )
    gpu_memory_gib: float = Field(
        default=0.0,
        ge=0,
        description="Memory of the training GPU in GiB, to check whether the training fits; 0 if unknown.",
    )

    @field_validator("target_modules")
    @classmethod
    def _validate_target_modules(cls, value: str) -> str:
        if not split_names(value):
            raise ValueError("names no module; write names separated by commas, a list of names, or all-linear")
        return value

    @field_validator("init")
    @classmethod
    def _validate_init(cls, value: str) -> str:
        if value not in INITS:
            reason = next((why for name, why in REFUSED_INITS.items() if value.startswith(name)), "")
            raise ValueError(f"{reason or 'unknown' + nearest(value, INITS)} (known: {', '.join(INITS)})")
        return value

    @model_validator(mode="after")
    def _validate_rank(self) -> Self:
        if self.init == "orthogonal" and self.r % 2:
            raise ValueError(f"init = orthogonal needs an even r, but r = {self.r}")
        return self

    @property
    def target_names(self) -> list[str]:
        """Names in `target_modules`."""
        return split_names(self.target_modules)

    @property
    def saved_names(self) -> list[str]:
        """Names in `modules_to_save`."""
        return split_names(self.modules_to_save)
