"""Deploys a model to the chosen target and proves that it answers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_finetune.components.serving.vllm_serve import targets
from llm_finetune.components.serving.vllm_serve.report import outcome
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
    model_metadata: Mapping[str, Any] | None = None,
    eval_report: str | Path | None = None,
) -> dict[str, Any]:
    """Deploys a model, asks it questions and writes what was found.

    Args:
        model_path: The merged model's folder.
        deployment_info_path: JSON file to write; the log of a local server goes beside it.
        page_path: Markdown page to write.
        settings: The card's settings.
        model_uri: Where a cluster finds the model; empty means the folder.
        model_metadata: The model artifact's metadata.
        eval_report: Evaluate's report, for questions from the validation rows; None for a model without its run.

    Returns:
        The content of the JSON file.

    Raises:
        UserError: If the model cannot be served, the target refuses it, or it does not answer.
    """
    metadata = dict(model_metadata or {})
    if settings.storage_uri:
        metadata.pop(STORE, None)  # it tells how to reach the artifact, not the copy
    uri = settings.storage_uri or model_uri or str(model_path)
    model = targets.Served(Path(model_path), uri, metadata, questions.from_report(eval_report) if eval_report else [])
    deploy = {"local": targets.local_server, "manifest": targets.manifest, "kserve": targets.kserve}[settings.target]
    return deploy(model, Path(deployment_info_path), Path(page_path), settings)
