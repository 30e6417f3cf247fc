"""Deploys a model to the chosen target and tests it."""

from collections.abc import Mapping
from pathlib import Path

from llm_finetune.components.serving.vllm_serve import targets
from llm_finetune.components.serving.vllm_serve.report import DeploymentInfo, outcome
from llm_finetune.components.serving.vllm_serve.settings import Settings
from llm_finetune.components.shared import questions
from llm_finetune.components.shared.metadata import STORE

__all__ = ["Settings", "outcome", "vllm_serve"]


def vllm_serve(
    model_path: str | Path,
    deployment_info_path: str | Path,
    page_path: str | Path,
    settings: Settings,
    model_uri: str = "",
    model_metadata: Mapping[str, object] | None = None,
    eval_report: str | Path | None = None,
) -> DeploymentInfo:
    """Deploys a model, sends test prompts and writes the result.

    Args:
        model_path: Folder of the merged model.
        deployment_info_path: JSON file to write; the log of a local server is written to the same folder.
        page_path: Markdown page to write.
        settings: The card's settings.
        model_uri: URI from which a cluster fetches the model; empty for the folder.
        model_metadata: Metadata of the model artifact.
        eval_report: Report of Evaluate, with validation rows as test prompts; None without one.

    Returns:
        The content of the JSON file.

    Raises:
        UserError: If the model cannot be served, the target rejects it, or a test prompt fails.
    """
    metadata = dict(model_metadata or {})
    if settings.storage_uri:
        metadata.pop(STORE, None)  # describes the store of the artifact, not of the copy
    uri = settings.storage_uri or model_uri or str(model_path)
    model = targets.ServedModel(
        Path(model_path), uri, metadata, questions.from_report(eval_report) if eval_report else []
    )
    deploy = {"local": targets.local_server, "manifest": targets.manifest, "kserve": targets.kserve}[settings.target]
    return deploy(model, Path(deployment_info_path), Path(page_path), settings)
