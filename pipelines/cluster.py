"""Kubernetes settings of the cards in the compiled pipeline: resources, volumes, secrets, placement."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kfp import dsl, kubernetes

from llm_finetune.pipelines.options import ClusterOptions, Kind

MODEL_CACHE, CHECKPOINTS, DATA = "/mnt/model-cache", "/mnt/checkpoints", "/mnt/data"
CA_FOLDER = "/etc/llm-finetune/authorities"
NETWORK_RETRIES, SPOT_RETRIES = 2, 5
HUB_TOKEN = {"token": "HF_TOKEN"}
# Keys of the other secrets are named after the variables of the cards; the S3 client does not read AWS_REGION.
OBJECT_STORE = {
    "AWS_ACCESS_KEY_ID": "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY": "AWS_SECRET_ACCESS_KEY",
    "AWS_ENDPOINT_URL": "AWS_ENDPOINT_URL", "AWS_REGION": "AWS_DEFAULT_REGION",
}  # fmt: skip
API_KEYS = {name: name for name in (
    "JUDGE_API_KEY", "ENDPOINT_API_KEY", "WANDB_API_KEY",
    "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD",
)}  # fmt: skip
# CA bundle of OpenSSL, httpx and Google's clients; of requests; of the S3 client.
CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


@dataclass(frozen=True)
class Cluster:
    """Applies compile options to tasks.

    Attributes:
        options: Compile options.
    """

    options: ClusterOptions

    def place(
        self, task: dsl.PipelineTask, title: str, kind: Kind, cached: bool = True, retries: int = 0
    ) -> dsl.PipelineTask:
        """Sets display name, resources, timeout, caching and retries of a task.

        Args:
            task: The task.
            title: Display name.
            kind: Kind of its resources.
            cached: Whether a cached result for the same inputs may be used.
            retries: Number of retries, with growing delays; only for cards that can fail temporarily.

        Returns:
            The task.
        """
        size = self.options.size(kind)
        task.set_display_name(title).set_caching_options(cached and self.options.caching)
        task.set_cpu_request(size.cpu).set_cpu_limit(size.cpu_limit)
        task.set_memory_request(size.memory).set_memory_limit(size.memory)
        # KFP has no setting for ephemeral-storage. This limits caches and temporary files; the volumes that KFP mounts
        # for artifacts have no limit, unless the namespace has a LimitRange.
        kubernetes.empty_dir_mount(task, volume_name="scratch", mount_path="/tmp", size_limit=size.scratch)
        kubernetes.set_timeout(task, size.hours * 3600)
        kubernetes.set_image_pull_policy(task, self.options.image_pull_policy)
        if self.options.image_pull_secrets:
            kubernetes.set_image_pull_secrets(task, list(self.options.image_pull_secrets))
        if retries:
            task.set_retry(retries, backoff_duration="30s", backoff_factor=2, backoff_max_duration="600s")
        return task

    def on_gpu(
        self, task: dsl.PipelineTask, title: str, gpu_type: Any, gpu_count: Any, chosen: Mapping[str, Any]
    ) -> dsl.PipelineTask:
        """Places a task on GPU nodes, with shared memory for the communication of its processes.

        Args:
            task: The task.
            title: Display name.
            gpu_type: Pipeline parameter with the resource name, such as nvidia.com/gpu.
            gpu_count: Pipeline parameter with the number of GPUs as a string; the backend ignores an integer.
            chosen: Outputs of Check Recipe: node selector, tolerations and claim names.

        Returns:
            The task.
        """
        # Retries are for preempted nodes; training resumes from its last checkpoint.
        self.place(task, title, "train", retries=SPOT_RETRIES if self.options.spot else 0)
        task.set_accelerator_type(gpu_type).set_accelerator_limit(gpu_count)
        # The compiler does not declare accelerator parameters as inputs; they would not resolve inside a condition.
        task.register_pipeline_channels([value for value in (gpu_type, gpu_count) if not isinstance(value, str)])
        kubernetes.empty_dir_mount(task, volume_name="dshm", mount_path="/dev/shm", medium="Memory")
        if self.options.queue:
            kubernetes.add_pod_label(task, QUEUE_LABEL, self.options.queue)
        kubernetes.add_node_selector_json(task, chosen["node_selector"])
        kubernetes.add_toleration_json(task, chosen["tolerations"])
        return self.with_model_cache(task, chosen)

    def with_model_cache(self, task: dsl.PipelineTask, chosen: Mapping[str, Any]) -> dsl.PipelineTask:
        """Mounts the volume of base models, if model_cache is set."""
        if self.options.model_cache:
            kubernetes.mount_pvc(task, chosen["model_cache_claim"], MODEL_CACHE)
        return task

    def with_checkpoints(self, task: dsl.PipelineTask, chosen: Mapping[str, Any]) -> dsl.PipelineTask:
        """Mounts the volume of checkpoints, if checkpoints is set."""
        if self.options.checkpoints:
            kubernetes.mount_pvc(task, chosen["checkpoint_claim"], CHECKPOINTS)
        return task

    def with_hub(self, task: dsl.PipelineTask, chosen: Mapping[str, Any]) -> dsl.PipelineTask:
        """Enables access to the Hugging Face Hub, which the images disable, and sets the token if the secret exists."""
        kubernetes.use_secret_as_env(task, chosen["hub_token_secret"], HUB_TOKEN, optional=True)
        if self.options.load_online:
            task.set_env_variable("HF_HUB_OFFLINE", "0")
        return self._with_external_access(task)

    def with_object_store(self, task: dsl.PipelineTask, chosen: Mapping[str, Any]) -> dsl.PipelineTask:
        """Sets endpoint and keys of an object store, if the secret exists."""
        kubernetes.use_secret_as_env(task, chosen["object_store_secret"], OBJECT_STORE, optional=True)
        return self._with_external_access(task)

    def with_api_keys(self, task: dsl.PipelineTask, chosen: Mapping[str, Any]) -> dsl.PipelineTask:
        """Sets the keys of experiment trackers and judge models, if the secret exists."""
        kubernetes.use_secret_as_env(task, chosen["api_keys_secret"], API_KEYS, optional=True)
        return self._with_external_access(task)

    def with_datasets(self, task: dsl.PipelineTask, chosen: Mapping[str, Any]) -> dsl.PipelineTask:
        """Enables access to datasets on the Hub, in an object store and on the volume of data_claim."""
        return self.with_data(self.with_object_store(self.with_hub(task, chosen), chosen))

    def with_data(self, task: dsl.PipelineTask) -> dsl.PipelineTask:
        """Mounts the volume of data_claim, if it is set; KFP cannot mount it read-only."""
        if self.options.data_claim:
            kubernetes.mount_pvc(task, self.options.data_claim, DATA)
        return task

    def _with_external_access(self, task: dsl.PipelineTask) -> dsl.PipelineTask:
        """Sets proxy and CA variables; idempotent."""
        variables = dict(self.options.environment)
        if self.options.ca_config_map:
            variables = dict.fromkeys(CA_VARIABLES, f"{CA_FOLDER}/ca.crt") | variables
            mounted = task.platform_config.get("kubernetes", {}).get("configMapAsVolume", [])
            if not any(volume["mountPath"] == CA_FOLDER for volume in mounted):
                kubernetes.use_config_map_as_volume(task, self.options.ca_config_map, CA_FOLDER)
        for name, value in variables.items():
            task.set_env_variable(name, value)
        return task

    @property
    def model_store(self) -> dict[str, str]:
        """Settings of Load Base Model for the volume of base models."""
        return {"store": "reference", "cache_dir": f"{MODEL_CACHE}/hub"} if self.options.model_cache else {}

    @property
    def checkpoint_root(self) -> str:
        """Folder of the checkpoints of all trainings; empty without a volume."""
        return CHECKPOINTS if self.options.checkpoints else ""
