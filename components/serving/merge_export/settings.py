"""Settings of the Merge & Export card."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from llm_finetune.components.shared.settings import CardSettings


class Settings(CardSettings):
    """Settings of the Merge & Export card; `component.py` describes them."""

    push_to_hub: bool = False
    hub_repo: str = ""
    save_format: Literal["safetensors", "pt"] = "safetensors"
    export_uri: str = ""
    export_overwrite: bool = False
    private: bool = True
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    keep_adapter: bool = False
    loss_tolerance: float = Field(0.05, gt=0)
    min_agreement: float = Field(0.95, ge=0, le=1)
    registry_url: str = Field("", pattern=r"^(https?://\S+)?$")
    registered_model: str = ""

    @field_validator("export_uri")
    @classmethod
    def _below_the_root(cls, uri: str) -> str:
        scheme, _, place = uri.rpartition("://")
        in_bucket = scheme not in ("", "file", "local", "memory")
        parts = [part for part in place.split("/") if part not in ("", ".")]
        if uri and len(parts) < 1 + in_bucket:
            whole = f"{scheme}://{(parts or ['bucket'])[0]}" if in_bucket else "/mnt"
            raise ValueError(
                f"it is the root of a {'bucket' if in_bucket else 'file system'}: give a folder of the model's "
                f"own, such as {whole}/models/my-model"
            )
        return uri

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
