"""Settings of the Merge & Export card."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from llm_finetune.components.shared.settings import CardSettings


class Settings(CardSettings):
    """Settings of the Merge & Export card; `component.py` describes them."""

    push_to_hub: bool = Field(
        default=False,
        description="Push the folder to the Hugging Face Hub; needs a token with write access in HF_TOKEN.",
    )
    hub_repo: str = Field(default="", description="Repository to push to, owner/name; made when absent.")
    save_format: Literal["safetensors", "pt"] = Field(
        default="safetensors",
        description="safetensors, or pt for pickle files (written with a warning; vLLM Serve takes safetensors only).",
    )
    export_uri: str = Field(
        default="",
        description="Where to copy the folder as well: gs://, s3:// or a mounted path; a manifest is written last. "
        "The place is empty, or holds an earlier export: of that, what the new one lacks is removed, and nothing "
        "else.",
    )
    export_overwrite: bool = Field(
        default=False,
        description="Write to an export_uri or hub_repo that holds files of others too: those of the same names are "
        "replaced, all others stay.",
    )
    private: bool = Field(default=True, description="Whether a new repository on the Hub is private.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto",
        description="Precision of the stored weights: bfloat16, float16, float32, or auto for the narrowest that "
        "keeps what was trained: the first of bfloat16, float16 (where the values fit its range) and float32 that "
        "stays within loss_tolerance and min_agreement. Of the two 16-bit types, the base model's own comes first.",
    )
    keep_adapter: bool = Field(default=False, description="Keep the adapter in a folder of its own beside the weights.")
    loss_tolerance: float = Field(
        default=0.05,
        gt=0,
        description="Largest difference of the validation loss between adapter and merged model, in nats per token.",
    )
    min_agreement: float = Field(
        default=0.95, ge=0, le=1, description="Least share of validation tokens that both must find most likely."
    )
    registry_url: str = Field(
        default="",
        pattern=r"^(https?://\S+)?$",
        description="Kubeflow Model Registry to register the model in, such as "
        "http://model-registry-service.kubeflow:8080; empty registers nowhere.",
    )
    registered_model: str = Field(
        default="", description="Name to register it under; its version is the hash of its content."
    )

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
