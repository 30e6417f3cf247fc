"""Registers the exported model in Kubeflow Model Registry."""

import re
import warnings
from dataclasses import dataclass
from typing import Any

from llm_finetune.components.shared.errors import UserError, first_line

AUTHOR = "llm-finetune"
FORMAT = {"model_format_name": "vLLM", "model_format_version": "1"}  # as the ServingRuntime names it
# Where KFP keeps an artifact, below the pipeline root: <pipeline>/<run>/<task>[/<salt>]/<name>.
ARTIFACT = re.compile(r"/(?P<pipeline>[^/]+)/(?P<run>[0-9a-f-]{36})/[^/]+/(?:[^/]+/)?[^/]+/?$")


@dataclass(frozen=True)
class Registration:
    """What is registered.

    Attributes:
        model: Name of the registered model.
        version: Name of its version; the same weights have the same one.
        uri: Where a server finds the weights, as KServe's storageUri.
        artifact_uri: The artifact's own URI, from which the run is known.
        figures: What is said about the version.
    """

    model: str
    version: str
    uri: str
    artifact_uri: str
    figures: dict[str, Any]


def connect(address: str) -> Any:
    """Returns a client of the registry; one that does not answer is refused before the work begins.

    The step's service account speaks; a token file in `KF_PIPELINES_SA_TOKEN_PATH` comes first.

    Args:
        address: Such as `http://model-registry-service.kubeflow:8080`.

    Raises:
        UserError: If it does not answer, or refuses the token.
    """
    from model_registry import ModelRegistry
    from model_registry.exceptions import StoreError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a registry inside a mesh needs no token of its own
        try:
            return ModelRegistry(address, author=AUTHOR)
        except StoreError as error:
            raise UserError(f"registry_url = {address!r}: {first_line(error)}") from error
        except Exception as error:  # the client lets the errors of its HTTP library and of its parser through
            raise UserError(
                f"registry_url = {address!r} does not answer as a Model Registry: {type(error).__name__}: "
                f"{first_line(error)}. Check address, network policy and the service account's rights"
            ) from error


def register(registry: Any, registration: Registration) -> str:
    """Registers a version of a model; the same weights are registered once.

    Args:
        registry: From `connect`.
        registration: What is registered.

    Returns:
        `name/version`.

    Raises:
        UserError: If the registry refuses.
    """
    model, version = registration.model, registration.version
    try:
        if not (registry.get_registered_model(model) and registry.get_model_version(model, version)):
            registry.register_model(
                model,
                registration.uri,
                version=version,
                metadata=registration.figures,
                **FORMAT,
                **_provenance(registration.artifact_uri),
            )
    except Exception as error:  # the client lets the errors of its HTTP library and of its parser through
        raise UserError(
            f"the Model Registry did not take {model}/{version}: {type(error).__name__}: {first_line(error)}"
        ) from error
    return f"{model}/{version}"


def _provenance(artifact_uri: str) -> dict[str, str]:
    """Returns the run that an artifact's URI tells of, in the registry's terms; nothing for one from elsewhere."""
    run = ARTIFACT.search(artifact_uri)
    if run is None:
        return {}
    return {
        "model_source_kind": "kfp",
        "model_source_class": "pipelinerun",
        "model_source_id": run["run"],
        "model_source_name": run["pipeline"],
    }
