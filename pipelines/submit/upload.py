"""Brings the compiled pipeline to Kubeflow as a pipeline with versions."""

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
    """A pipeline's version on the server.

    Attributes:
        pipeline_id: The pipeline.
        version_id: Its version.
        name: The version's name.
        new: Whether it was uploaded just now.
    """

    pipeline_id: str
    version_id: str
    name: str
    new: bool


def upload(connection: Connection, compiled: Path, pipeline: str, version: str) -> Version:
    """Uploads the pipeline, or a new version of it, unless the same is there.

    Args:
        connection: Connection to the API.
        compiled: Compiled YAML.
        pipeline: Name of the pipeline.
        version: Name of the version; empty takes one that stands for the content, so that nothing is uploaded twice.

    Returns:
        The version.

    Raises:
        UserError: If a version of the given name is there already: versions don't change.
    """
    client, name = connection.client, version or content_version(compiled)
    pipeline_id = _pipeline_id(connection, pipeline)
    if not pipeline_id:
        made = connection.create(
            f"creating the pipeline {pipeline}",
            lambda: _by_name(connection, pipeline),
            lambda: client._pipelines_api.pipeline_service_create_pipeline(
                pipeline={
                    "display_name": pipeline,
                    "namespace": connection.namespace or None,
                    "description": "Fine-tunes an open LLM with LoRA, evaluates it and serves it.",
                }
            ),
        )
        pipeline_id = made.pipeline_id
    found = _version(connection, pipeline_id, name)
    if found and version:
        raise UserError(
            f"the pipeline {pipeline} has a version {name} already, and a version never changes: choose another "
            "--version, or leave it out for one that is named after its content"
        )
    uploaded = found or connection.create(
        f"uploading version {name} of the pipeline {pipeline}",
        lambda: _version(connection, pipeline_id, name),
        lambda: client.upload_pipeline_version(str(compiled), name, pipeline_id=pipeline_id),
    )
    return Version(pipeline_id, uploaded.pipeline_version_id, name, not found)


def _pipeline_id(connection: Connection, name: str) -> str | None:
    with connection.doing(f"looking for the pipeline {name}"):
        found = connection.client.list_pipelines(
            filter=named(name), namespace=connection.namespace or None, page_size=1
        ).pipelines
    return found[0].pipeline_id if found else None


def _by_name(connection: Connection, name: str) -> Any:
    """Returns the pipeline of a name, which is there once; its display name, set from elsewhere, may be another."""
    try:
        return connection.client._pipelines_api.pipeline_service_get_pipeline_by_name(
            name, namespace=connection.namespace or None
        )
    except ApiException as error:
        if error.status == 404:
            return None
        raise


def _version(connection: Connection, pipeline_id: str, name: str) -> Any:
    with connection.doing(f"looking for version {name}"):
        found = connection.client.list_pipeline_versions(pipeline_id, filter=named(name), page_size=1).pipeline_versions
    return found[0] if found else None


def named(name: str) -> str:
    """Returns a filter of the API for things of a name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})
