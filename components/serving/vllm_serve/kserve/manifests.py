"""Builds the ServingRuntime and the InferenceService, for the cluster and for GitOps."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import yaml

from llm_finetune.components.serving.vllm_serve.settings import Settings
from llm_finetune.components.shared.modeling.adapters import vllm_lora_rank

REVISION = "llm-finetune/revision"
MODE = "serving.kserve.io/deploymentMode"
# KServe 0.16 renamed the modes; both spellings are in use.
MODES = {"RawDeployment": "Standard", "Serverless": "Knative", "Standard": "Standard", "Knative": "Knative"}
RUNTIME_NAME = Settings().runtime
IMAGE = "vllm/vllm-openai:v0.24.0"
PORT = 8080
MODEL = "/mnt/models"
ADAPTERS = f"{MODEL}/adapters"

Manifest = dict[str, Any]
"""A Kubernetes object, or a part of one."""


@dataclass(frozen=True)
class Deployment:
    """Input of an InferenceService: the card's settings and the model.

    Attributes:
        settings: The card's settings, with namespace, deployment mode and dtype resolved for this cluster and model.
            With an empty namespace, the manifest has none.
        storage_uri: storageUri of the model; with adapters, of their base.
        content: Content hash of the model, part of the revision.
        image: vLLM image of the runtime, part of the revision.
        adapters: Name and storageUri of each LoRA adapter.
        lora_rank: Largest rank of the adapters.
    """

    settings: Settings
    storage_uri: str
    content: str = ""
    image: str = IMAGE
    adapters: tuple[tuple[str, str], ...] = ()
    lora_rank: int = 16

    @property
    def name(self) -> str:
        """Name of the InferenceService."""
        return self.settings.service_name

    @property
    def knative(self) -> bool:
        """Whether it runs in Knative mode."""
        return MODES.get(self.settings.deployment_mode) == "Knative"


def arguments(deployment: Deployment) -> list[str]:
    """Returns the vLLM flags of this deployment; KServe appends them to the constant flags of the runtime."""
    settings = deployment.settings
    flags = [f"--max-num-batched-tokens={settings.max_batch_tokens}"]
    if settings.max_model_len:
        flags.append(f"--max-model-len={settings.max_model_len}")
    if settings.dtype != "auto":
        flags.append(f"--dtype={settings.dtype}")
    if settings.gpus:
        flags.append(f"--gpu-memory-utilization={settings.gpu_memory_utilization:g}")
        flags.append(f"--tensor-parallel-size={settings.gpus}")
    if deployment.adapters:
        flags += ["--enable-lora", f"--max-lora-rank={vllm_lora_rank(deployment.lora_rank)}"]
        flags += [f"--max-loras={len(deployment.adapters)}", "--lora-modules"]
        flags += [f"{name}={ADAPTERS}/{name}" for name, _ in deployment.adapters]
    return flags


def revision(deployment: Deployment) -> str:
    """Returns the hash of the served revision: model, flags and image."""
    identity: list[object] = [deployment.storage_uri, deployment.content, arguments(deployment), deployment.image]
    identity += [deployment.adapters] if deployment.adapters else []
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def inference_service(deployment: Deployment) -> Manifest:
    """Returns the InferenceService.

    The revision is an annotation of the predictor only: KServe copies annotations of the InferenceService to the pods,
    so every change there restarts the model.
    """
    settings = deployment.settings
    resources = {"cpu": settings.cpu, "memory": settings.memory}
    scheduling: Manifest = {}
    if settings.gpus:
        resources[settings.gpu_type] = str(settings.gpus)
        scheduling["tolerations"] = [{"key": settings.gpu_type, "operator": "Exists", "effect": "NoSchedule"}]
    if settings.node_selector:
        scheduling["nodeSelector"] = dict(settings.node_selector)
    # Knative's default progress deadline is ten minutes.
    deadline = f"{settings.ready_timeout}s"
    progress = {"serving.knative.dev/progress-deadline": deadline} if deployment.knative else {}
    # No CPU limit, so that CPU can burst.
    limits = {name: amount for name, amount in resources.items() if name != "cpu"}
    metadata: Manifest = {
        "name": deployment.name,
        "labels": {"app.kubernetes.io/managed-by": "llm-finetune"},
        # The default class is an autoscaler on CPU utilization, which does not reflect the load of a GPU.
        "annotations": {MODE: settings.deployment_mode, "serving.kserve.io/autoscalerClass": "none"},
    }
    if settings.namespace:
        metadata["namespace"] = settings.namespace
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": metadata,
        "spec": {
            "predictor": {
                "annotations": {REVISION: revision(deployment)} | progress,
                "serviceAccountName": settings.service_account,
                "automountServiceAccountToken": False,
                # With service links, a Service named `vllm` sets VLLM_PORT=tcp://..., which vLLM reads as its port.
                "enableServiceLinks": False,
                "minReplicas": settings.replicas,
                "maxReplicas": settings.replicas,
                "timeout": 600,
                "terminationGracePeriodSeconds": 60,
                "deploymentStrategy": {
                    "type": "RollingUpdate",
                    "rollingUpdate": {
                        "maxSurge": settings.max_surge,
                        "maxUnavailable": 0 if settings.max_surge else 1,
                    },
                },
                **scheduling,
                **_storage_uris(deployment),
                "model": {
                    "modelFormat": {"name": "vLLM"},
                    "runtime": settings.runtime,
                    **({} if deployment.adapters else {"storageUri": deployment.storage_uri}),
                    "args": arguments(deployment),
                    "resources": {"requests": resources, "limits": limits},
                },
            }
        },
    }


def _storage_uris(deployment: Deployment) -> Manifest:
    """Returns the storageUris of base and adapters; empty without adapters, where the model has its storageUri."""
    if not deployment.adapters:
        return {}
    places = [(deployment.storage_uri, MODEL), *((uri, f"{ADAPTERS}/{name}") for name, uri in deployment.adapters)]
    return {"storageUris": [{"uri": uri, "mountPath": place} for uri, place in places]}


def serving_runtime(name: str = RUNTIME_NAME, image: str = IMAGE, namespace: str = "") -> Manifest:
    """Returns the ServingRuntime for vLLM, which runs as a non-root user and writes to /tmp only.

    Args:
        name: Name of the ServingRuntime.
        image: Image of vLLM's OpenAI-compatible server.
        namespace: Namespace; if empty, the manifest has none.
    """
    variables = {
        "HOME": "/tmp",
        "USER": "vllm",
        "HF_HOME": "/tmp/hf",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_CACHE_ROOT": "/tmp/vllm",
        "VLLM_CONFIG_ROOT": "/tmp/vllm",
        "TRITON_CACHE_DIR": "/tmp/triton",
        "TORCHINDUCTOR_CACHE_DIR": "/tmp/inductor",
        "VLLM_NO_USAGE_STATS": "1",
    }
    container: Manifest = {
        "name": "kserve-container",
        "image": image,
        # The image's entry point differs between releases.
        "command": ["vllm", "serve"],
        "args": [
            MODEL,
            f"--port={PORT}",
            "--served-model-name={{.Name}}",
            "--disable-access-log-for-endpoints=/health,/metrics",
        ],
        "env": [{"name": variable, "value": value} for variable, value in variables.items()],
        "ports": [{"name": "http1", "containerPort": PORT, "protocol": "TCP"}],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 2000,
            "runAsGroup": 0,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        # Up to 30 minutes to load weights and warm up; the liveness probe starts after that.
        "startupProbe": _probe("/health", period=10, timeout=5, failures=180),
        "readinessProbe": _probe("/v1/models", period=5, timeout=5, failures=3),
        "livenessProbe": _probe("/health", period=15, timeout=10, failures=8),
        "resources": {"requests": {"cpu": "4", "memory": "24Gi"}, "limits": {"memory": "24Gi"}},
        "volumeMounts": [{"name": "dshm", "mountPath": "/dev/shm"}, {"name": "tmp", "mountPath": "/tmp"}],
    }
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {"name": name} | ({"namespace": namespace} if namespace else {}),
        "spec": {
            "annotations": {"prometheus.kserve.io/port": str(PORT), "prometheus.kserve.io/path": "/metrics"},
            "multiModel": False,
            "protocolVersions": ["v1", "v2"],
            "supportedModelFormats": [{"name": "vLLM", "version": "1", "autoSelect": False}],
            "containers": [container],
            "volumes": [
                {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": "4Gi"}},
                {"name": "tmp", "emptyDir": {"sizeLimit": "20Gi"}},
            ],
        },
    }


def as_yaml(*manifests: Manifest) -> str:
    """Returns manifests as a deterministic YAML stream."""
    return yaml.safe_dump_all(manifests, sort_keys=False, explicit_start=True, width=1000, allow_unicode=True)


def _probe(path: str, period: int, timeout: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": PORT},
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    }


def runtime_file() -> str:
    """Returns the content of manifests/base/serving-runtime.yaml; `python -m` prints it."""
    module = "llm_finetune.components.serving.vllm_serve.kserve.manifests"
    command = f"python -m {module} > manifests/base/serving-runtime.yaml"
    return f"# vLLM on KServe. Made by: {command}\n" + as_yaml(serving_runtime())


if __name__ == "__main__":
    print(runtime_file(), end="")
