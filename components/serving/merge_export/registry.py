"""Registers the exported model in Kubeflow Model Registry."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_finetune.components.shared.errors import UserError, first_line

AUTHOR = "llm-finetune"
FORMAT = {"model_format_name": "vLLM", "model_format_version": "1"}  # of the ServingRuntime
# Where KFP keeps an artifact, below the pipeline root: <pipeline>/<run>/<task>[/<salt>]/<name>.
ARTIFACT = re.compile(r"/(?P<pipeline>[^/]+)/(?P<run>[0-9a-f-]{36})/[^/]+/(?:[^/]+/)?[^/]+/?$")


@dataclass(frozen=True)
class Registration:
    """A version of a registered model.

    Attributes:
        model: Name of the registered model.
        version: Name of the version, the same for the same weights.
        uri: storageUri of the weights.
        artifact_uri: URI of the artifact, which contains the ID of the run.
        figures: Metadata of the version.
    """

    model: str
    version: str
    uri: str
    artifact_uri: str
    figures: Mapping[str, object]


def connect(address: str) -> Any:
    """Connects to the Model Registry.

    Authenticates with the token file in `KF_PIPELINES_SA_TOKEN_PATH`, else with the service account of the step.

    Args:
        address: Such as `http://model-registry-service.kubeflow:8080`.

    Returns:
        The client.

    Raises:
        UserError: If the registry is unreachable or rejects the token.
    """
    from model_registry import ModelRegistry
    from model_registry.exceptions import StoreError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a registry in a service mesh needs no token
        try:
            return ModelRegistry(address, author=AUTHOR)
        except StoreError as error:
            raise UserError(f"registry_url = {address!r}: {first_line(error)}") from error
        except Exception as error:  # the client also raises errors of its HTTP library and its parser
            raise UserError(
                f"registry_url = {address!r} is not a reachable Model Registry: {type(error).__name__}: "
                f"{first_line(error)}. Check the address, network policies and the permissions of the service account"
            ) from error


def register(registry: Any, registration: Registration) -> str:
    """Registers a version of a model, unless it is registered already.

    Args:
        registry: Client from `connect`.
        registration: The version.

    Returns:
        `name/version`.

    Raises:
        UserError: If the registry rejects the version.
    """
    model, version = registration.model, registration.version
    try:
        if not (registry.get_registered_model(model) and registry.get_model_version(model, version)):
            registry.register_model(
                model,
                registration.uri,
                version=version,
                metadata=dict(registration.figures),
                **FORMAT,
                **_provenance(registration.artifact_uri),
            )
    except Exception as error:  # the client also raises errors of its HTTP library and its parser
        raise UserError(
            f"the Model Registry rejected {model}/{version}: {type(error).__name__}: {first_line(error)}"
        ) from error
    return f"{model}/{version}"


def _provenance(artifact_uri: str) -> dict[str, str]:
    """Returns the run in the URI of an artifact as source of a model version; empty for other URIs."""
    run = ARTIFACT.search(artifact_uri)
    if run is None:
        return {}
    return {
        "model_source_kind": "kfp",
        "model_source_class": "pipelinerun",
        "model_source_id": run["run"],
        "model_source_name": run["pipeline"],
    }
