"""LoRA adapters on a shared base model: finds them, and adds or removes them on a running server."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import urllib3

from llm_finetune.components.serving.vllm_serve import smoke
from llm_finetune.components.serving.vllm_serve.kserve.manifests import ADAPTERS, Deployment
from llm_finetune.components.serving.vllm_serve.local import model_folder
from llm_finetune.components.shared.errors import UserError, nearest
from llm_finetune.components.shared.modeling.adapters import serving_obstacle

if TYPE_CHECKING:
    from llm_finetune.components.serving.vllm_serve.kserve.preflight import PreflightResult


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter.

    Attributes:
        folder: Folder on this machine.
        uri: URI from which a cluster fetches it.
        base: Folder or URI of the base model.
        rank: LoRA rank.
    """

    folder: Path
    uri: str
    base: str
    rank: int


def find_adapter(folder: Path, uri: str, base: str = "", origin: Mapping[str, object] | None = None) -> Adapter:
    """Finds the adapter in the folder of a model: the folder itself, or its subfolder `adapter/`.

    Args:
        folder: Folder of the model.
        uri: URI of the model.
        base: The base model; empty for the one in the adapter's configuration.
        origin: `base_model` and `base_revision` from the metadata of the artifact.

    Raises:
        UserError: If the folder has no adapter, vLLM cannot serve it on a shared base, or its base is unknown.
    """
    inner = "" if (folder / "adapter_config.json").is_file() else "adapter"
    found = folder / inner
    if not (found / "adapter_config.json").is_file():
        raise UserError(
            f"serve_adapter: {folder} has no adapter_config.json, and neither has its subfolder adapter/. Set "
            "`merge_export: {keep_adapter: true}` in the recipe to export the adapter"
        )
    config = json.loads((found / "adapter_config.json").read_text(encoding="utf-8"))
    if reason := serving_obstacle(config):
        raise UserError(
            f"serve_adapter: vLLM cannot serve the adapter in {found} on a shared base: {reason}. Serve the merged "
            "model instead, with serve_adapter = false"
        )
    base = base or model_folder.base_of(found)
    if not base:
        raise UserError(
            f"serve_adapter: adapter_config.json in {found} has no base model; set adapter_base to its folder or URI"
        )
    where = "/".join(filter(None, [uri.rstrip("/"), inner]))
    return Adapter(found, where, _pin_base(base, config, origin or {}), int(config.get("r") or 16))


def with_existing_adapters(deployment: Deployment, found: PreflightResult, removed: list[str]) -> Deployment:
    """Adds the adapters that the InferenceService serves already, without the removed ones.

    Args:
        deployment: Deployment with the new adapter only.
        found: Result of the preflight.
        removed: Names of adapters to remove.

    Raises:
        UserError: If this version of KServe supports one model per pod only, an adapter to remove is unknown, or the
            InferenceService serves another base.
    """
    if not deployment.adapters:
        return deployment
    if not found.features.storage_uris and found.features.generation != "unknown":
        raise UserError(
            f"serve_adapter: KServe {found.features.generation} supports one model per service (storageUris needs "
            "0.16). Upgrade KServe, or serve the merged model"
        )
    predictor = ((found.existing or {}).get("spec") or {}).get("predictor") or {}
    places = {entry.get("mountPath", ""): entry["uri"] for entry in predictor.get("storageUris") or []}
    if found.existing and not places:
        raise UserError(
            f"serve_adapter: InferenceService {deployment.name} exists and serves no adapters. Set adapter_service to "
            "another name"
        )
    prefix = ADAPTERS + "/"
    present = {place.removeprefix(prefix): uri for place, uri in places.items() if place.startswith(prefix)}
    base = next((uri for place, uri in places.items() if not place.startswith(prefix)), deployment.storage_uri)
    if base != deployment.storage_uri:
        raise UserError(
            f"serve_adapter: {deployment.name} serves the base {base}, but the adapter needs {deployment.storage_uri}. "
            "Set adapter_service to the service of that base, or to a new name"
        )
    for name in removed:
        if name not in present:
            known = ", ".join(sorted(present)) or "none"
            raise UserError(
                f"remove_adapters: {deployment.name} has no adapter {name!r}{nearest(name, present)} (it has {known})"
            )
    kept = {name: uri for name, uri in present.items() if name not in removed} | dict(deployment.adapters)
    flags = (predictor.get("model") or {}).get("args") or []
    ranks = [int(flag.partition("=")[2]) for flag in flags if flag.startswith("--max-lora-rank=")]
    return replace(deployment, adapters=tuple(sorted(kept.items())), lora_rank=max([deployment.lora_rank, *ranks]))


def _pin_base(base: str, config: Mapping[str, object], origin: Mapping[str, object]) -> str:
    """Returns the URI of a base; for a base on the Hub, with the commit that the adapter was trained on."""
    name = base.removeprefix("hf://")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(base).exists():
        return base
    commits = [
        (config.get("base_model_name_or_path"), config.get("revision")),
        (origin.get("base_model"), origin.get("base_revision")),
    ]
    commit = next((commit for named, commit in commits if named == name and commit), "")
    return f"hf://{name}:{commit}" if commit else f"hf://{name}"


def load(base_url: str, name: str, folder: str | Path, timeout: float = 60) -> None:
    """Adds an adapter to a running server, without an interruption of service.

    Args:
        base_url: Root of the API of a local server that was started with an adapter, ending in `/v1`.
        name: Model name of the adapter in requests.
        folder: Folder of the adapter on the machine of the server.
        timeout: Seconds.

    Raises:
        UserError: If the request fails.
    """
    _post(f"{base_url}/load_lora_adapter", {"lora_name": name, "lora_path": str(Path(folder).resolve())}, timeout)


def unload(base_url: str, name: str, timeout: float = 60) -> None:
    """Removes an adapter from a running server, without an interruption of service.

    Args:
        base_url: Root of the API of a local server that was started with an adapter, ending in `/v1`.
        name: Model name of the adapter.
        timeout: Seconds.

    Raises:
        UserError: If the server has no such adapter, or the request fails.
    """
    known = smoke.models(base_url, timeout)
    if name not in known:
        raise UserError(f"{base_url} serves no {name!r}{nearest(name, known)} (it serves {', '.join(known)})")
    _post(f"{base_url}/unload_lora_adapter", {"lora_name": name}, timeout)


def _post(url: str, body: dict[str, object], timeout: float) -> None:
    try:
        answer = urllib3.request("POST", url, json=body, timeout=timeout, retries=False)
    except urllib3.exceptions.HTTPError as error:
        raise UserError(f"POST {url} got no answer: {error}") from None
    if answer.status != 200:
        hint = ". Start the server with serve_adapter = true" if answer.status == 404 else ""
        raise UserError(f"POST {url} answered {answer.status}: {answer.data.decode(errors='replace')[:600]}{hint}")
