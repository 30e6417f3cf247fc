"""Settings of the Merge & Export card."""

from typing import Literal, Self

from pydantic import Field, model_validator

from llm_finetune.components.shared.settings import CardSettings


class Settings(CardSettings):
    """Settings of the Merge & Export card; `component.py` describes them."""

    push_to_hub: bool = False
    hub_repo: str = ""
    save_format: Literal["safetensors", "pt"] = "safetensors"
    export_uri: str = ""
    private: bool = True
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    keep_adapter: bool = False
    loss_tolerance: float = Field(0.05, gt=0)
    min_agreement: float = Field(0.95, ge=0, le=1)
    registry_url: str = Field("", pattern=r"^(https?://\S+)?$")
    registered_model: str = ""

    @model_validator(mode="after")
    def _somewhere_to_push(self) -> Self:
        if self.push_to_hub and self.hub_repo.count("/") != 1:
            raise ValueError(f"push_to_hub needs hub_repo = owner/name, and it is {self.hub_repo!r}")
        return self

    @model_validator(mode="after")
    def _a_name_to_register(self) -> Self:
        if bool(self.registry_url) != bool(self.registered_model):
            raise ValueError("registry_url and registered_model go together: where to register, and under which name")
        return self
