"""Settings of the Merge & Export card."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from llm_finetune.components.shared.settings import CardSettings


class Settings(CardSettings):
    """Settings of the Merge & Export card."""

    push_to_hub: bool = Field(
        default=False,
        description="Push the model to the Hugging Face Hub; needs a token with write access in HF_TOKEN.",
    )
    hub_repo: str = Field(default="", description="Repository to push to, owner/name; created if it does not exist.")
    save_format: Literal["safetensors", "pt"] = Field(
        default="safetensors",
        description="safetensors, or pt for pickle files (with a warning; vLLM Serve accepts safetensors only).",
    )
    export_uri: str = Field(
        default="",
        description="Where to copy the model: gs://, s3:// or a mounted path; a manifest is written last. The location "
        "must be empty or have an earlier export: files of that export which the new one lacks are deleted, and no "
        "others.",
    )
    export_overwrite: bool = Field(
        default=False,
        description="Write to an export_uri or hub_repo with other files: files of the same names are replaced, all "
        "others are kept.",
    )
    private: bool = Field(default=True, description="Whether a new repository on the Hub is private.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto",
        description="Type of the stored weights: bfloat16, float16, float32, or auto for the narrowest type that "
        "preserves the training: the first of bfloat16, float16 (if the values are in its range) and float32 that "
        "stays within loss_tolerance and min_agreement. Of the 16-bit types, that of the base model is tried first.",
    )
    keep_adapter: bool = Field(default=False, description="Also export the adapter, in the subfolder adapter.")
    loss_tolerance: float = Field(
        default=0.05,
        gt=0,
        description="Maximum difference of the validation loss between adapter and merged model, in nats per token.",
    )
    min_agreement: float = Field(
        default=0.95,
        ge=0,
        le=1,
        description="Minimum fraction of validation tokens for which both predict the same most likely token.",
    )
    registry_url: str = Field(
        default="",
        pattern=r"^(https?://\S+)?$",
        description="URL of the Kubeflow Model Registry to register the model in, such as "
        "http://model-registry-service.kubeflow:8080; empty for none.",
    )
    registered_model: str = Field(
        default="", description="Name of the registered model; its version is the hash of its content."
    )

    @field_validator("export_uri")
    @classmethod
    def _not_a_root(cls, uri: str) -> str:
        scheme, _, place = uri.rpartition("://")
        in_bucket = scheme not in ("", "file", "local", "memory")
        parts = [part for part in place.split("/") if part not in ("", ".")]
        if uri and len(parts) < 1 + in_bucket:
            whole = f"{scheme}://{(parts or ['bucket'])[0]}" if in_bucket else "/mnt"
            raise ValueError(
                f"it is the root of a {'bucket' if in_bucket else 'file system'}: use a folder for the model, such as "
                f"{whole}/models/my-model"
            )
        return uri

    @model_validator(mode="after")
    def _check_hub_repo(self) -> Self:
        if self.push_to_hub and self.hub_repo.count("/") != 1:
            raise ValueError(f"push_to_hub needs hub_repo = owner/name, and it is {self.hub_repo!r}")
        return self

    @model_validator(mode="after")
    def _check_registry(self) -> Self:
        if bool(self.registry_url) != bool(self.registered_model):
            raise ValueError("registry_url and registered_model must be set together")
        return self
