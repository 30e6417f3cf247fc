"""Uploads the compiled pipeline to Kubeflow as a version of a pipeline."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfp_server_api import ApiException

from llm_finetune.components.shared.errors import UserError
from llm_finetune.pipelines.compile import content_version
from llm_finetune.pipelines.submit.connection import Connection


@dataclass(frozen=True)
class Version:
    """A version of a pipeline on the server.

    Attributes:
        pipeline_id: ID of the pipeline.
        version_id: ID of the version.
        name: Name of the version.
        new: Whether this call uploaded it.
    """

    pipeline_id: str
    version_id: str
    name: str
    new: bool


def upload(connection: Connection, compiled: Path, pipeline: str, version: str) -> Version:
    """Uploads a version of the pipeline unless it exists; creates the pipeline if necessary.

    Args:
        connection: Connection to the API.
        compiled: Compiled YAML.
        pipeline: Name of the pipeline.
        version: Name of the version; empty derives it from the content, so that the same content is uploaded once.

    Returns:
        The version.

    Raises:
        UserError: If a version with the given name exists; versions are immutable.
    """
    client, name = connection.client, version or content_version(compiled)
    pipeline_id = _find_pipeline_id(connection, pipeline)
    if not pipeline_id:
        made = connection.create(
            f"creating the pipeline {pipeline}",
            lambda: _pipeline_by_name(connection, pipeline),
            lambda: client._pipelines_api.pipeline_service_create_pipeline(
                pipeline={
                    "display_name": pipeline,
                    "namespace": connection.namespace or None,
                    "description": "Fine-tunes an open LLM with LoRA, evaluates it and serves it.",
                }
            ),
        )
        pipeline_id = made.pipeline_id
    found = _find_version(connection, pipeline_id, name)
    if found and version:
        raise UserError(
            f"the pipeline {pipeline} already has a version {name}, and versions are immutable: choose another "
            "--version, or omit it to name the version after its content"
        )
    uploaded = found or connection.create(
        f"uploading version {name} of the pipeline {pipeline}",
        lambda: _find_version(connection, pipeline_id, name),
        lambda: client.upload_pipeline_version(str(compiled), name, pipeline_id=pipeline_id),
    )
    return Version(pipeline_id, uploaded.pipeline_version_id, name, not found)


def _find_pipeline_id(connection: Connection, name: str) -> str | None:
    with connection.explain_errors(f"looking for the pipeline {name}"):
        found = connection.client.list_pipelines(
            filter=name_filter(name), namespace=connection.namespace or None, page_size=1
        ).pipelines
    return found[0].pipeline_id if found else None


def _pipeline_by_name(connection: Connection, name: str) -> Any:
    """Returns the pipeline with a unique name, whose display name may differ, or None."""
    try:
        return connection.client._pipelines_api.pipeline_service_get_pipeline_by_name(
            name, namespace=connection.namespace or None
        )
    except ApiException as error:
        if error.status == 404:
            return None
        raise


def _find_version(connection: Connection, pipeline_id: str, name: str) -> Any:
    with connection.explain_errors(f"looking for version {name}"):
        found = connection.client.list_pipeline_versions(
            pipeline_id, filter=name_filter(name), page_size=1
        ).pipeline_versions
    return found[0] if found else None


def name_filter(name: str) -> str:
    """Returns a filter of the API for objects with a display name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})
