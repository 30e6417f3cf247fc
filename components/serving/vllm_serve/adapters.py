"""LoRA adapters on a shared base: which one, where it lies, and adding or removing one while the base serves."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import urllib3

from llm_finetune.components.serving.vllm_serve import smoke
from llm_finetune.components.serving.vllm_serve.kserve.manifests import ADAPTERS, Deployment
from llm_finetune.components.serving.vllm_serve.local import model_folder
from llm_finetune.components.shared.errors import UserError, nearest
from llm_finetune.components.shared.modeling.adapters import serving_obstacle

if TYPE_CHECKING:
    from llm_finetune.components.serving.vllm_serve.kserve.preflight import Found


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter.

    Attributes:
        folder: Its folder on this machine.
        uri: Where a cluster finds it.
        base: Its base model: folder or URI.
        rank: Its rank.
    """

    folder: Path
    uri: str
    base: str
    rank: int


def of(folder: Path, uri: str, base: str = "", origin: Mapping[str, Any] | None = None) -> Adapter:
    """Finds the adapter in a model's folder: the folder itself, or `adapter/` in it.

    Args:
        folder: The model's folder.
        uri: The model's URI.
        base: The base model; empty takes the one that the adapter names.
        origin: What the artifact's metadata says of the base: `base_model` and `base_revision`.

    Raises:
        UserError: If there is none, or it names no base.
    """
    inner = "" if (folder / "adapter_config.json").is_file() else "adapter"
    found = folder / inner
    if not (found / "adapter_config.json").is_file():
        raise UserError(
            f"serve_adapter: {folder} holds no adapter (adapter_config.json, here or in adapter/). "
            "Merge & Export keeps it there with keep_adapter"
        )
    config = json.loads((found / "adapter_config.json").read_text(encoding="utf-8"))
    if reason := serving_obstacle(config):
        raise UserError(
            f"serve_adapter: vLLM can't serve the adapter in {found} on a shared base, for {reason}: serve the merged "
            "model instead, with serve_adapter = false"
        )
    base = base or model_folder.base_of(found)
    if not base:
        raise UserError(f"serve_adapter: {found} names no base model; set adapter_base to its folder or URI")
    where = "/".join(filter(None, [uri.rstrip("/"), inner]))
    return Adapter(found, where, _pinned(base, config, origin or {}), int(config.get("r") or 16))


def beside(deployment: Deployment, found: Found, removed: list[str]) -> Deployment:
    """Returns the deployment with the adapters that its base carries already, less the removed ones.

    Args:
        deployment: With the new adapter alone.
        found: What the preflight found.
        removed: Names of adapters to take off.

    Raises:
        UserError: If this KServe puts one model in a pod at most, an adapter to remove is unknown, or the base differs.
    """
    if not deployment.adapters:
        return deployment
    if not found.features.storage_uris and found.features.generation != "unknown":
        raise UserError(
            f"serve_adapter: KServe {found.features.generation} fetches one model per service (storageUris came with "
            "0.16). Upgrade KServe, or serve the merged model"
        )
    predictor = ((found.existing or {}).get("spec") or {}).get("predictor") or {}
    places = {entry.get("mountPath", ""): entry["uri"] for entry in predictor.get("storageUris") or []}
    if found.existing and not places:
        raise UserError(
            f"serve_adapter: InferenceService {deployment.name} exists and carries no adapters. Set adapter_service to "
            "another name"
        )
    prefix = ADAPTERS + "/"
    present = {place.removeprefix(prefix): uri for place, uri in places.items() if place.startswith(prefix)}
    base = next((uri for place, uri in places.items() if not place.startswith(prefix)), deployment.storage_uri)
    if base != deployment.storage_uri:
        raise UserError(
            f"serve_adapter: {deployment.name} serves {base}, and this adapter belongs on {deployment.storage_uri}. "
            "Set adapter_service to the service of that base, or to a new name"
        )
    for name in removed:
        if name not in present:
            known = ", ".join(sorted(present)) or "none"
            raise UserError(
                f"remove_adapters: {deployment.name} has no {name!r}{nearest(name, present)} (it has {known})"
            )
    kept = {name: uri for name, uri in present.items() if name not in removed} | dict(deployment.adapters)
    flags = (predictor.get("model") or {}).get("args") or []
    ranks = [int(flag.partition("=")[2]) for flag in flags if flag.startswith("--max-lora-rank=")]
    return replace(deployment, adapters=tuple(sorted(kept.items())), lora_rank=max([deployment.lora_rank, *ranks]))


def _pinned(base: str, config: Mapping[str, Any], origin: Mapping[str, Any]) -> str:
    """Returns a base as a cluster fetches it: from the Hub at the commit that the adapter was trained on."""
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
    """Adds an adapter to a running server, which goes on answering meanwhile.

    Args:
        base_url: Root of a local server that was started with an adapter, ending in `/v1`.
        name: The name that clients ask for.
        folder: The adapter's folder on the server's machine.
        timeout: Seconds.

    Raises:
        UserError: If the server refuses it.
    """
    _post(f"{base_url}/load_lora_adapter", {"lora_name": name, "lora_path": str(Path(folder).resolve())}, timeout)


def unload(base_url: str, name: str, timeout: float = 60) -> None:
    """Takes an adapter off a running server, which goes on answering meanwhile.

    Args:
        base_url: Root of a local server that was started with an adapter, ending in `/v1`.
        name: The adapter's name.
        timeout: Seconds.

    Raises:
        UserError: If it has no such adapter, or refuses.
    """
    known = smoke.models(base_url, timeout)
    if name not in known:
        raise UserError(f"{base_url} serves no {name!r}{nearest(name, known)} (it serves {', '.join(known)})")
    _post(f"{base_url}/unload_lora_adapter", {"lora_name": name}, timeout)


def _post(url: str, body: dict[str, Any], timeout: float) -> None:
    try:
        answer = urllib3.request("POST", url, json=body, timeout=timeout, retries=False)
    except urllib3.exceptions.HTTPError as error:
        raise UserError(f"POST {url} got no answer: {error}") from None
    if answer.status != 200:
        hint = ". The server was started without serve_adapter" if answer.status == 404 else ""
        raise UserError(f"POST {url} answered {answer.status}: {answer.data.decode(errors='replace')[:600]}{hint}")
