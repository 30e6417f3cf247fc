"""The three places that a model can be deployed to; each writes the same deployment_info and page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_finetune.components.serving.vllm_serve import adapters, questions, report, smoke
from llm_finetune.components.serving.vllm_serve.kserve import manifests
from llm_finetune.components.serving.vllm_serve.local import commands, model_folder
from llm_finetune.components.serving.vllm_serve.local import server as server_process
from llm_finetune.components.serving.vllm_serve.questions import Asked
from llm_finetune.components.shared.engine import processes, storage_uris
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import content_hash
from llm_finetune.components.shared.questions import Question

if TYPE_CHECKING:
    from llm_finetune.components.serving.vllm_serve.kserve.diagnosis import Pace
    from llm_finetune.components.serving.vllm_serve.settings import Settings


@dataclass(frozen=True)
class Served:
    """The model to serve.

    Attributes:
        path: Its folder on this machine.
        uri: Where a cluster finds it.
        metadata: Its artifact's metadata.
        rows: Validation rows as chat requests.
    """

    path: Path
    uri: str
    metadata: dict[str, Any]
    rows: Sequence[Question] = ()

    @property
    def content(self) -> str:
        """The content hash that its card recorded, else computed."""
        recorded = self.metadata.get("content_hash")
        return str(recorded) if recorded else content_hash(self.path) if self.path.is_dir() else ""


def local_server(model: Served, info_path: Path, page_path: Path, settings: Settings) -> dict[str, Any]:
    """Starts a server process on this machine that outlives the card."""
    _refuse_canary(settings)
    base, adapter = _with_adapter(model.path, settings)
    folder = info_path.parent.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with server_process.hold(settings.port) as held:
        launch = commands.choose(
            base,
            settings.deployment_name,
            held.port,
            folder,
            settings.max_batch_tokens,
            settings.max_model_len,
            settings.dtype,
            adapter,
        )
        server = server_process.start(launch, held, folder / "server.log", settings.ready_timeout)
    try:
        base_url = f"http://{server_process.HOST}:{server.port}/v1"
        asked = questions.choose(settings, model.rows, launch.max_model_len or base.context_length)
        # `transformers serve` lists its download cache, and answers to the name of its model alone.
        root = str(adapter or base.path) if launch.server == "vllm" else ""
        answers = _ask(base_url, settings.deployment_name, asked, settings, bool(root), root)
        server_process.check(server)
        info = _facts(settings, base_url, f"{model.content.removeprefix('sha256:')[:16]}", asked, answers) | {
            "ready_seconds": server.ready_seconds,
            "server": launch.server,
            "dtype": launch.dtype,
            "max_model_len": launch.max_model_len or base.context_length,
            "pid": server.pid,
            "process_group": server.pid,
            "process_started": server.started,
            "log": str(server.log),
        }
        report.write(info_path, page_path, info)
    except BaseException:
        processes.end_group(server.pid, grace=5.0)
        raise
    return info


def manifest(model: Served, info_path: Path, page_path: Path, settings: Settings) -> dict[str, Any]:
    """Writes the ServingRuntime and InferenceService for a GitOps repository; deploys nothing."""
    deployment, _ = planned(model, settings)
    runtime = manifests.serving_runtime(deployment.runtime, deployment.image, settings.namespace)
    service = manifests.inference_service(deployment)
    knative = deployment.mode in ("Knative", "Serverless")
    if settings.canary_percent and knative:
        service["spec"]["predictor"]["canaryTrafficPercent"] = settings.canary_percent
    elif settings.canary_percent or settings.candidate_first:
        raise UserError(
            "target manifest gives the InferenceService alone: it can hold a share of the traffic (canary_percent) in "
            "deployment_mode = Knative only, and candidate_first needs a cluster. Use target = kserve"
        )
    asked = questions.choose(settings, model.rows, settings.max_model_len or _context(model, settings))
    info = _facts(settings, _cluster_url(deployment), manifests.revision(deployment), asked, []) | {
        "storage_uri": deployment.storage_uri,
        "manifests": manifests.as_yaml(runtime, service),
    }
    report.write(info_path, page_path, info)
    return info


def kserve(
    model: Served, info_path: Path, page_path: Path, settings: Settings, pace: Pace | None = None
) -> dict[str, Any]:
    """Brings an InferenceService to this model and asks it; whatever fails leaves the cluster as it was."""
    from llm_finetune.components.serving.vllm_serve.kserve import canary, preflight
    from llm_finetune.components.serving.vllm_serve.kserve.cluster import Cluster
    from llm_finetune.components.serving.vllm_serve.kserve.diagnosis import Pace
    from llm_finetune.components.serving.vllm_serve.kserve.release import Release

    pace = pace or Pace(ready=settings.ready_timeout, unschedulable=settings.unschedulable_timeout)
    deployment, store = planned(model, settings)
    begun, cluster = time.monotonic(), Cluster(settings.namespace, pace.pause)
    found = preflight.check(cluster, deployment, store, settings.storage_secret)
    deployment = replace(
        deployment, namespace=cluster.namespace, image=found.image or deployment.image, mode=found.mode
    )
    deployment = adapters.beside(deployment, found, settings.remove_adapters)
    revision = manifests.revision(deployment)
    manifest = canary.with_name(manifests.inference_service(deployment), found.existing, revision)
    bring_in = canary.choose(cluster, deployment.name, settings.canary_percent, settings.candidate_first, found)
    manifest = canary.accepted(cluster, manifest, found.existing)
    asked = questions.choose(settings, model.rows, settings.max_model_len or _context(model, settings))
    release = Release(
        cluster, deployment.name, settings.deployment_name, manifest, revision, found.existing, pace,
        settings.keep_failed, lambda url, name: _ask_on_cluster(url, name, asked, settings),
    )  # fmt: skip
    outcome = bring_in(release)
    info = _facts(settings, outcome.base_url, revision, asked, outcome.answers) | {
        "ready_seconds": round(time.monotonic() - begun, 2),
        "server": "vllm",
        "namespace": cluster.namespace,
        "inference_service": deployment.name,
        "traffic": outcome.share,
        "storage_uri": dict(deployment.adapters).get(settings.deployment_name, deployment.storage_uri),
        **({"adapters": [name for name, _ in deployment.adapters]} if deployment.adapters else {}),
        **preflight.summary(found),
    }
    report.write(info_path, page_path, info)
    return info


def _context(model: Served, settings: Settings) -> int:
    known = model.path.is_dir() and not settings.serve_adapter
    return model_folder.read(model.path).context_length if known else 0


def planned(model: Served, settings: Settings) -> tuple[manifests.Deployment, storage_uris.Storage]:
    """Returns what is to be deployed, and where the weights lie that the card made.

    Raises:
        UserError: If the model cannot be served, or lies where a cluster cannot fetch it.
    """
    if not settings.serve_adapter:
        stored = str(model.metadata.get("dtype", ""))
        if model.path.exists():
            stored = model_folder.read(model.path).dtype
        store = storage_uris.storage_of(model.uri, model.metadata, settings.storage_endpoint)
        return replace(
            _deployment(model, store.uri, settings), dtype=model_folder.unnarrowed(settings.dtype, stored)
        ), store
    adapter = adapters.of(model.path, model.uri, settings.adapter_base, model.metadata.get("origin"))
    store = storage_uris.storage_of(adapter.uri, model.metadata, settings.storage_endpoint)
    base = storage_uris.storage_of(adapter.base, model.metadata, settings.storage_endpoint).uri
    return replace(
        _deployment(model, base, settings),
        name=settings.service_name,
        adapters=((settings.deployment_name, store.uri),),
        lora_rank=adapter.rank,
    ), store


def _deployment(model: Served, storage_uri: str, settings: Settings) -> manifests.Deployment:
    return manifests.Deployment(
        name=settings.deployment_name,
        namespace=settings.namespace,
        storage_uri=storage_uri,
        content=model.content,
        max_batch_tokens=settings.max_batch_tokens,
        max_model_len=settings.max_model_len,
        dtype=settings.dtype,
        replicas=settings.replicas,
        max_surge=settings.max_surge,
        gpu_type=settings.gpu_type,
        gpu_count=int(settings.gpu_count),
        gpu_memory_utilization=settings.gpu_memory_utilization,
        cpu=settings.cpu,
        memory=settings.memory,
        node_selector=settings.node_selector,
        service_account=settings.service_account,
        runtime=settings.runtime,
        mode=settings.deployment_mode,
        patience=settings.ready_timeout,
    )


def _facts(
    settings: Settings, base_url: str, revision: str, asked: Asked, answers: list[smoke.Answer]
) -> dict[str, Any]:
    """Returns what every target's deployment_info begins with."""
    name = settings.deployment_name
    return {
        "deployment_name": name,
        "base_url": base_url,
        "model": name,
        "max_batch_tokens": settings.max_batch_tokens,
        "example_curl": report.example_curl(base_url, name, asked.conversations[0], settings.answer_tokens),
        "asked": asked.origin,
        "revision": revision,
        "target": settings.target,
        "ready_seconds": 0.0,
        **report.answer_facts(answers),
    }


def _ask(
    base_url: str, model: str, asked: Asked, settings: Settings, listed: bool = True, root: str = ""
) -> list[smoke.Answer]:
    print(f"asking {model}: {asked.origin}", flush=True)
    answers = smoke.smoke_test(
        base_url, model, asked.conversations, settings.answer_tokens, settings.request_timeout, listed, root
    )
    for answer in answers:
        print(f"asked {answer.prompt!r}: {answer.text!r} ({answer.seconds} s, {answer.finish_reason})", flush=True)
    return answers


def _ask_on_cluster(base_url: str, model: str, asked: Asked, settings: Settings) -> list[smoke.Answer]:
    answers = _ask(base_url, model, asked, settings)
    stopped = any(answer.finish_reason == "stop" for answer in answers)
    if settings.require_stop and asked.may_stop and not stopped:
        raise smoke.SmokeFailure(
            f"{model} ended none of its {len(answers)} answers by itself within {settings.answer_tokens} tokens, so it "
            "may never stop. Was the end-of-turn token trained, and is it in generation_config.json? If the answers "
            "are long by nature, raise answer_tokens or set require_stop = False"
        )
    return answers


def _cluster_url(deployment: manifests.Deployment) -> str:
    namespace, knative = deployment.namespace or "default", deployment.mode in ("Knative", "Serverless")
    host = deployment.name if knative else f"{deployment.name}-predictor"
    return f"http://{host}.{namespace}.svc.cluster.local/v1"


def _with_adapter(path: Path, settings: Settings) -> tuple[model_folder.ModelFolder, Path | None]:
    """Returns the model's folder, and the adapter that goes on it where that is asked for."""
    if not settings.serve_adapter:
        return model_folder.read(path), None
    adapter = adapters.of(path, str(path), settings.adapter_base)
    if adapter.base.startswith("hf://"):
        raise UserError(
            f"serve_adapter: the adapter names its base {adapter.base.removeprefix('hf://')!r} on the Hub; on this "
            "machine, set adapter_base to the base's folder"
        )
    return model_folder.read(adapter.base), adapter.folder


def _refuse_canary(settings: Settings) -> None:
    if settings.canary_percent or settings.candidate_first:
        raise UserError("canary_percent and candidate_first: a server on this machine takes all requests or none")
