"""Deploys a model to one of three targets; each writes the same deployment_info and page."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from llm_finetune.components.serving.vllm_serve import adapters, questions, report, smoke
from llm_finetune.components.serving.vllm_serve.kserve import manifests
from llm_finetune.components.serving.vllm_serve.local import commands, model_folder
from llm_finetune.components.serving.vllm_serve.local import server as server_process
from llm_finetune.components.serving.vllm_serve.local.ports import HOST
from llm_finetune.components.serving.vllm_serve.questions import SmokePrompts
from llm_finetune.components.serving.vllm_serve.report import DeploymentInfo
from llm_finetune.components.shared.engine import processes, storage_uris
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import content_hash
from llm_finetune.components.shared.questions import Question

if TYPE_CHECKING:
    from llm_finetune.components.serving.vllm_serve.kserve.diagnosis import Timeouts
    from llm_finetune.components.serving.vllm_serve.settings import Settings


@dataclass(frozen=True)
class ServedModel:
    """The model to serve.

    Attributes:
        path: Its folder on this machine.
        uri: URI from which a cluster fetches it.
        metadata: Metadata of its artifact.
        rows: Validation rows as chat requests.
    """

    path: Path
    uri: str
    metadata: Mapping[str, object]
    rows: Sequence[Question] = ()

    @property
    def content(self) -> str:
        """The content hash in the metadata; without one, computed from the folder."""
        recorded = self.metadata.get("content_hash")
        return str(recorded) if recorded else content_hash(self.path) if self.path.is_dir() else ""


def local_server(model: ServedModel, info_path: Path, page_path: Path, settings: Settings) -> DeploymentInfo:
    """Starts a server process on this machine, which keeps running after the card has ended."""
    _refuse_canary(settings)
    base, adapter = _base_and_adapter(model.path, settings)
    folder = info_path.parent.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with server_process.reserve_port(settings.port) as reserved:
        launch = commands.build(
            base,
            settings.deployment_name,
            reserved.port,
            folder,
            settings.max_batch_tokens,
            settings.max_model_len,
            settings.dtype,
            adapter,
        )
        server = server_process.start(launch, reserved, folder / "server.log", settings.ready_timeout)
    try:
        base_url = f"http://{HOST}:{server.port}/v1"
        prompts = questions.choose(settings, model.rows, launch.max_model_len or base.context_length)
        # `transformers serve` lists its download cache instead of the served model.
        root = str(adapter or base.path) if launch.server == "vllm" else ""
        answers = _ask(base_url, settings.deployment_name, prompts, settings, bool(root), root)
        server_process.verify_running(server)
        info = _common_info(settings, base_url, f"{model.content.removeprefix('sha256:')[:16]}", prompts, answers)
        info |= {
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


def manifest(model: ServedModel, info_path: Path, page_path: Path, settings: Settings) -> DeploymentInfo:
    """Writes the ServingRuntime and InferenceService for a GitOps repository, and deploys nothing."""
    deployment, _ = plan_deployment(model, settings)
    runtime = manifests.serving_runtime(settings.runtime, deployment.image, settings.namespace)
    service = manifests.inference_service(deployment)
    if settings.canary_percent and deployment.knative:
        service["spec"]["predictor"]["canaryTrafficPercent"] = settings.canary_percent
    elif settings.canary_percent or settings.candidate_first:
        raise UserError(
            "target = manifest writes one InferenceService: canary_percent needs deployment_mode = Knative there, and "
            "candidate_first needs a cluster. Use target = kserve"
        )
    prompts = questions.choose(settings, model.rows, settings.max_model_len or _context_length(model, settings))
    info = _common_info(settings, _cluster_url(deployment), manifests.revision(deployment), prompts, [])
    info |= {"storage_uri": deployment.storage_uri, "manifests": manifests.as_yaml(runtime, service)}
    report.write(info_path, page_path, info)
    return info


def kserve(
    model: ServedModel, info_path: Path, page_path: Path, settings: Settings, timeouts: Timeouts | None = None
) -> DeploymentInfo:
    """Updates an InferenceService to this model and tests it; a failure restores the previous state."""
    from llm_finetune.components.serving.vllm_serve.kserve import canary, preflight
    from llm_finetune.components.serving.vllm_serve.kserve.cluster import Cluster
    from llm_finetune.components.serving.vllm_serve.kserve.diagnosis import Timeouts
    from llm_finetune.components.serving.vllm_serve.kserve.release import Release

    timeouts = timeouts or Timeouts(ready=settings.ready_timeout, unschedulable=settings.unschedulable_timeout)
    deployment, store = plan_deployment(model, settings)
    started, cluster = time.monotonic(), Cluster(settings.namespace, timeouts.retry_delay)
    found = preflight.check(cluster, deployment, store, settings.storage_secret)
    resolved = {"namespace": cluster.namespace, "deployment_mode": found.mode}
    deployment = replace(
        deployment, settings=deployment.settings.model_copy(update=resolved), image=found.image or deployment.image
    )
    deployment = adapters.with_existing_adapters(deployment, found, settings.remove_adapters)
    revision = manifests.revision(deployment)
    manifest = canary.with_predictor_name(manifests.inference_service(deployment), found.existing, revision)
    deploy = canary.choose(cluster, deployment.name, settings.canary_percent, settings.candidate_first, found)
    manifest = canary.check_with_dry_run(cluster, manifest, found.existing)
    prompts = questions.choose(settings, model.rows, settings.max_model_len or _context_length(model, settings))
    outcome = deploy(
        Release(
            cluster, deployment.name, settings.deployment_name, manifest, revision, found.existing, timeouts,
            settings.keep_failed, lambda url, name: _ask_on_cluster(url, name, prompts, settings),
        )
    )  # fmt: skip
    info = _common_info(settings, outcome.base_url, revision, prompts, outcome.answers)
    info |= {
        "ready_seconds": round(time.monotonic() - started, 2),
        "server": "vllm",
        "namespace": cluster.namespace,
        "inference_service": deployment.name,
        "traffic": outcome.share,
        "storage_uri": dict(deployment.adapters).get(settings.deployment_name, deployment.storage_uri),
    }
    if deployment.adapters:
        info["adapters"] = [name for name, _ in deployment.adapters]
    info |= {"kserve": found.features.generation, "deployment_mode": found.mode}
    report.write(info_path, page_path, info)
    return info


def _context_length(model: ServedModel, settings: Settings) -> int:
    known = model.path.is_dir() and not settings.serve_adapter
    return model_folder.read(model.path).context_length if known else 0


def plan_deployment(model: ServedModel, settings: Settings) -> tuple[manifests.Deployment, storage_uris.Storage]:
    """Plans the deployment on a cluster.

    Returns:
        The deployment, and the storage of the weights that this run produced (with an adapter: of the adapter).

    Raises:
        UserError: If the model cannot be served, or its storage cannot be read from a cluster.
    """
    if not settings.serve_adapter:
        stored = str(model.metadata.get("dtype", ""))
        if model.path.exists():
            stored = model_folder.read(model.path).dtype
        store = storage_uris.storage_of(model.uri, model.metadata, settings.storage_endpoint)
        resolved = settings.model_copy(update={"dtype": model_folder.compute_dtype(settings.dtype, stored)})
        return manifests.Deployment(resolved, store.uri, model.content), store
    origin = cast("Mapping[str, object] | None", model.metadata.get("origin"))
    adapter = adapters.find_adapter(model.path, model.uri, settings.adapter_base, origin)
    store = storage_uris.storage_of(adapter.uri, model.metadata, settings.storage_endpoint)
    base = storage_uris.storage_of(adapter.base, model.metadata, settings.storage_endpoint).uri
    named = ((settings.deployment_name, store.uri),)
    return manifests.Deployment(settings, base, model.content, adapters=named, lora_rank=adapter.rank), store


def _common_info(
    settings: Settings, base_url: str, revision: str, prompts: SmokePrompts, answers: list[smoke.Answer]
) -> DeploymentInfo:
    """Returns the part of deployment_info that all targets share."""
    name = settings.deployment_name
    return {
        "deployment_name": name,
        "base_url": base_url,
        "model": name,
        "max_batch_tokens": settings.max_batch_tokens,
        "example_curl": report.example_curl(base_url, name, prompts.conversations[0], settings.answer_tokens),
        "asked": prompts.origin,
        "revision": revision,
        "target": settings.target,
        "ready_seconds": 0.0,
        # The first request also warms up the server.
        "first_token_seconds": min((answer.first_token_seconds for answer in answers), default=0.0),
        "answers": [answer.as_json() for answer in answers],
    }


def _ask(
    base_url: str, model: str, prompts: SmokePrompts, settings: Settings, check_list: bool = True, root: str = ""
) -> list[smoke.Answer]:
    print(f"sending test prompts to {model}: {prompts.origin}", flush=True)
    answers = smoke.smoke_test(
        base_url, model, prompts.conversations, settings.answer_tokens, settings.request_timeout, check_list, root
    )
    for answer in answers:
        print(f"prompt {answer.prompt!r}: {answer.text!r} ({answer.seconds} s, {answer.finish_reason})", flush=True)
    return answers


def _ask_on_cluster(base_url: str, model: str, prompts: SmokePrompts, settings: Settings) -> list[smoke.Answer]:
    answers = _ask(base_url, model, prompts, settings)
    stopped = any(answer.finish_reason == "stop" for answer in answers)
    if settings.require_stop and prompts.may_stop and not stopped:
        raise smoke.SmokeFailure(
            f"none of the {len(answers)} answers of {model} ended within {settings.answer_tokens} tokens: the model "
            "may not generate its end-of-turn token. Check that the token was trained and that "
            "generation_config.json lists it. If long answers are expected, raise answer_tokens or set "
            "require_stop = False"
        )
    return answers


def _cluster_url(deployment: manifests.Deployment) -> str:
    host = deployment.name if deployment.knative else f"{deployment.name}-predictor"
    return f"http://{host}.{deployment.settings.namespace or 'default'}.svc.cluster.local/v1"


def _base_and_adapter(path: Path, settings: Settings) -> tuple[model_folder.ModelFolder, Path | None]:
    """Returns the folder of the model and, with serve_adapter, of its adapter."""
    if not settings.serve_adapter:
        return model_folder.read(path), None
    adapter = adapters.find_adapter(path, str(path), settings.adapter_base)
    if adapter.base.startswith("hf://"):
        raise UserError(
            f"serve_adapter: the base model of the adapter is {adapter.base.removeprefix('hf://')!r} on the Hub. With "
            "target = local, set adapter_base to the folder of the base model"
        )
    return model_folder.read(adapter.base), adapter.folder


def _refuse_canary(settings: Settings) -> None:
    if settings.canary_percent or settings.candidate_first:
        raise UserError(
            "canary_percent and candidate_first need target = kserve: a server on this machine cannot split traffic"
        )
