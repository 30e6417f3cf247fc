"""The ServingRuntime and InferenceService that the suite deploys: one place for the cluster and for GitOps."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from llm_finetune.components.shared.modeling.adapters import vllm_lora_rank

REVISION = "llm-finetune/revision"
MODE = "serving.kserve.io/deploymentMode"
RUNTIME_NAME = "llm-vllm"
IMAGE = "vllm/vllm-openai:v0.24.0"
PORT = 8080
MODEL = "/mnt/models"
ADAPTERS = f"{MODEL}/adapters"

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Deployment:
    """What an InferenceService is made from.

    Attributes:
        name: Its name, and the name under which the model is served.
        namespace: Where it lives; empty leaves the manifest without one.
        storage_uri: Where the model lies, as KServe writes it.
        max_batch_tokens: Most tokens that one step of the engine works on.
        max_model_len: Longest sequence; 0 for the model's own.
        dtype: `auto` or a type.
        replicas: Pods, always so many.
        max_surge: Pods that a rollout may run beside the old ones; 0 ends an old pod first and needs no spare GPU.
        gpu_type: Resource name of the accelerator.
        gpu_count: Accelerators per pod; 0 for none.
        gpu_memory_utilization: Share of the GPU's memory that vLLM takes.
        cpu: CPU request per pod.
        memory: Memory request and limit per pod.
        node_selector: Labels of the nodes to run on.
        service_account: Account whose secrets reach the model's store.
        runtime: The ServingRuntime's name.
        image: vLLM image of the runtime, part of the revision.
        mode: KServe deployment mode.
        content: Content hash of the model, part of the revision.
        patience: Seconds that a rollout may take (Knative gives up after them).
        adapters: LoRA adapters on top of the model: name and storageUri of each.
        lora_rank: Greatest rank of them.
    """

    name: str
    storage_uri: str
    namespace: str = ""
    max_batch_tokens: int = 8192
    max_model_len: int = 0
    dtype: str = "auto"
    replicas: int = 1
    max_surge: int = 1
    gpu_type: str = "nvidia.com/gpu"
    gpu_count: int = 1
    gpu_memory_utilization: float = 0.9
    cpu: str = "4"
    memory: str = "24Gi"
    node_selector: Mapping[str, str] = field(default_factory=dict)
    service_account: str = "llm-serving"
    runtime: str = RUNTIME_NAME
    image: str = IMAGE
    mode: str = "Standard"
    content: str = ""
    patience: int = 1800
    adapters: tuple[tuple[str, str], ...] = ()
    lora_rank: int = 16


def arguments(deployment: Deployment) -> list[str]:
    """Returns vLLM's tuning flags; those that never change are in the runtime, because KServe concatenates the two."""
    flags = [f"--max-num-batched-tokens={deployment.max_batch_tokens}"]
    if deployment.max_model_len:
        flags.append(f"--max-model-len={deployment.max_model_len}")
    if deployment.dtype != "auto":
        flags.append(f"--dtype={deployment.dtype}")
    if deployment.gpu_count:
        flags.append(f"--gpu-memory-utilization={deployment.gpu_memory_utilization:g}")
        flags.append(f"--tensor-parallel-size={deployment.gpu_count}")
    if deployment.adapters:
        flags += ["--enable-lora", f"--max-lora-rank={vllm_lora_rank(deployment.lora_rank)}"]
        flags += [f"--max-loras={len(deployment.adapters)}", "--lora-modules"]
        flags += [f"{name}={ADAPTERS}/{name}" for name, _ in deployment.adapters]
    return flags


def revision(deployment: Deployment) -> str:
    """Returns the hash that tells one served model from the next: model, flags and image."""
    identity: list[Any] = [deployment.storage_uri, deployment.content, arguments(deployment), deployment.image]
    identity += [deployment.adapters] if deployment.adapters else []
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def inference_service(deployment: Deployment) -> Manifest:
    """Returns the InferenceService.

    The revision stands in the predictor's annotations alone: annotations of the InferenceService itself are copied to
    the pods too, and whatever changes there restarts the model.
    """
    resources = {"cpu": deployment.cpu, "memory": deployment.memory}
    scheduling: Manifest = {}
    if deployment.gpu_count:
        resources[deployment.gpu_type] = str(deployment.gpu_count)
        scheduling["tolerations"] = [{"key": deployment.gpu_type, "operator": "Exists", "effect": "NoSchedule"}]
    if deployment.node_selector:
        scheduling["nodeSelector"] = dict(deployment.node_selector)
    # Knative gives a revision up after ten minutes unless told otherwise.
    knative = deployment.mode in ("Knative", "Serverless")
    progress = {"serving.knative.dev/progress-deadline": f"{deployment.patience}s"} if knative else {}
    # CPU may burst; memory and accelerators may not.
    limits = {name: amount for name, amount in resources.items() if name != "cpu"}
    metadata: Manifest = {
        "name": deployment.name,
        "labels": {"app.kubernetes.io/managed-by": "llm-finetune"},
        # Without a class, KServe makes an autoscaler on CPU load, which says nothing about a GPU.
        "annotations": {MODE: deployment.mode, "serving.kserve.io/autoscalerClass": "none"},
    }
    if deployment.namespace:
        metadata["namespace"] = deployment.namespace
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": metadata,
        "spec": {
            "predictor": {
                "annotations": {REVISION: revision(deployment)} | progress,
                "serviceAccountName": deployment.service_account,
                "automountServiceAccountToken": False,
                # A service called `vllm` would set VLLM_PORT=tcp://..., which vLLM reads as its port.
                "enableServiceLinks": False,
                "minReplicas": deployment.replicas,
                "maxReplicas": deployment.replicas,
                "timeout": 600,
                "terminationGracePeriodSeconds": 60,
                "deploymentStrategy": {
                    "type": "RollingUpdate",
                    "rollingUpdate": {
                        "maxSurge": deployment.max_surge,
                        "maxUnavailable": 0 if deployment.max_surge else 1,
                    },
                },
                **scheduling,
                **_several(deployment),
                "model": {
                    "modelFormat": {"name": "vLLM"},
                    "runtime": deployment.runtime,
                    **({} if deployment.adapters else {"storageUri": deployment.storage_uri}),
                    "args": arguments(deployment),
                    "resources": {"requests": resources, "limits": limits},
                },
            }
        },
    }


def _several(deployment: Deployment) -> Manifest:
    """Returns where the base and each of its adapters are put; without adapters, the model has its one storageUri."""
    if not deployment.adapters:
        return {}
    places = [(deployment.storage_uri, MODEL), *((uri, f"{ADAPTERS}/{name}") for name, uri in deployment.adapters)]
    return {"storageUris": [{"uri": uri, "mountPath": place} for uri, place in places]}


def serving_runtime(name: str = RUNTIME_NAME, image: str = IMAGE, namespace: str = "") -> Manifest:
    """Returns the ServingRuntime: vLLM on KServe's conventions, as an ordinary user, writing to /tmp alone.

    Args:
        name: Its name.
        image: vLLM's OpenAI server image.
        namespace: Where it lives; empty leaves the manifest without one.
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
        # The image's own entry point has changed between releases.
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
        # Half an hour for pulling shards into the GPU and warming up; only then does liveness count.
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
    """Returns manifests as YAML documents, byte for byte the same for the same input."""
    return yaml.safe_dump_all(manifests, sort_keys=False, explicit_start=True, width=1000, allow_unicode=True)


def _probe(path: str, period: int, timeout: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": PORT},
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    }


def runtime_file() -> str:
    """Returns the content of manifests/base/serving-runtime.yaml; `python -m` this module prints it."""
    module = "llm_finetune.components.serving.vllm_serve.kserve.manifests"
    command = f"python -m {module} > manifests/base/serving-runtime.yaml"
    return f"# vLLM on KServe. Made by: {command}\n" + as_yaml(serving_runtime())


if __name__ == "__main__":
    print(runtime_file(), end="")
