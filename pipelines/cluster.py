"""What every card asks of the cluster, written into the compiled pipeline."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kfp import dsl, kubernetes

from llm_finetune.pipelines.options import ClusterOptions, Kind

MODEL_CACHE, CHECKPOINTS, DATA = "/mnt/model-cache", "/mnt/checkpoints", "/mnt/data"
AUTHORITIES = "/etc/llm-finetune/authorities"
NETWORK_RETRIES, SPOT_RETRIES = 2, 5
HUB_TOKEN = {"token": "HF_TOKEN"}
# Keys of the other secrets are named like the variables that the cards read; S3's client reads no AWS_REGION.
OBJECT_STORE = {
    "AWS_ACCESS_KEY_ID": "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY": "AWS_SECRET_ACCESS_KEY",
    "AWS_ENDPOINT_URL": "AWS_ENDPOINT_URL", "AWS_REGION": "AWS_DEFAULT_REGION",
}  # fmt: skip
API_KEYS = {name: name for name in (
    "JUDGE_API_KEY", "ENDPOINT_API_KEY", "WANDB_API_KEY",
    "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD",
)}  # fmt: skip
# As OpenSSL, httpx and Google's clients name their file of authorities; as requests does; as S3's client does.
AUTHORITY_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


@dataclass(frozen=True)
class Cluster:
    """Gives tasks their place on a cluster.

    Attributes:
        options: What was chosen for the cluster when the pipeline is compiled.
    """

    options: ClusterOptions

    def place(
        self, task: dsl.PipelineTask, title: str, kind: Kind, cached: bool = True, retries: int = 0
    ) -> dsl.PipelineTask:
        """Names a task and bounds what it may use.

        Args:
            task: The task.
            title: Its name in the dashboard.
            kind: Its size.
            cached: Whether an earlier result for the same inputs may be taken.
            retries: How often it is tried again, with growing pauses; only for what can pass by itself.

        Returns:
            The task.
        """
        size = self.options.size(kind)
        task.set_display_name(title).set_caching_options(cached and self.options.caching)
        task.set_cpu_request(size.cpu).set_cpu_limit(size.cpu_limit)
        task.set_memory_request(size.memory).set_memory_limit(size.memory)
        # KFP has no setting for ephemeral-storage requests. This bounds caches and temporary files; what KFP mounts for
        # the artifacts themselves has no bound, unless the namespace has a LimitRange.
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
        """Names a task and puts it on GPUs, with the shared memory that their processes exchange data through.

        Args:
            task: The task.
            title: Its name in the dashboard.
            gpu_type: Resource name, such as nvidia.com/gpu; a pipeline parameter.
            gpu_count: Number of GPUs as text: the backend takes a number for none; a pipeline parameter.
            chosen: Outputs of Check Recipe: where to run and which volume holds the base model.

        Returns:
            The task.
        """
        # A node that is taken away is nobody's fault; training then goes on from its last checkpoint.
        self.place(task, title, "train", retries=SPOT_RETRIES if self.options.spot else 0)
        task.set_accelerator_type(gpu_type).set_accelerator_limit(gpu_count)
        # The compiler does not declare accelerator parameters as inputs; inside a condition they would not resolve.
        task.register_pipeline_channels([value for value in (gpu_type, gpu_count) if not isinstance(value, str)])
        kubernetes.empty_dir_mount(task, volume_name="dshm", mount_path="/dev/shm", medium="Memory")
        if self.options.queue:
            kubernetes.add_pod_label(task, QUEUE_LABEL, self.options.queue)
        kubernetes.add_node_selector_json(task, chosen["node_selector"])
        kubernetes.add_toleration_json(task, chosen["tolerations"])
        return self.with_model_cache(task, chosen)

    def with_model_cache(self, task: dsl.PipelineTask, chosen: Mapping[str, Any]) -> dsl.PipelineTask:
        """Mounts the volume of base models, where there is one."""
        if self.options.model_cache:
            kubernetes.mount_pvc(task, chosen["model_cache_claim"], MODEL_CACHE)
        return task

    def with_checkpoints(self, task: dsl.PipelineTask, chosen: Mapping[str, Any]) -> dsl.PipelineTask:
        """Mounts the volume of checkpoints, where there is one."""
        if self.options.checkpoints:
            kubernetes.mount_pvc(task, chosen["checkpoint_claim"], CHECKPOINTS)
        return task

    def with_hub(self, task: dsl.PipelineTask, chosen: Mapping[str, Any]) -> dsl.PipelineTask:
        """Lets a task reach the Hugging Face Hub, which the images shut out, with a token where there is one."""
        kubernetes.use_secret_as_env(task, chosen["hub_token_secret"], HUB_TOKEN, optional=True)
        if self.options.load_online:
            task.set_env_variable("HF_HUB_OFFLINE", "0")
        return self._outward(task)

    def with_object_store(self, task: dsl.PipelineTask, chosen: Mapping[str, Any]) -> dsl.PipelineTask:
        """Gives a task the address and keys of an object store, where the namespace has such a secret."""
        kubernetes.use_secret_as_env(task, chosen["object_store_secret"], OBJECT_STORE, optional=True)
        return self._outward(task)

    def with_api_keys(self, task: dsl.PipelineTask, chosen: Mapping[str, Any]) -> dsl.PipelineTask:
        """Gives a task the keys of trackers and judging models, where the namespace has such a secret."""
        kubernetes.use_secret_as_env(task, chosen["api_keys_secret"], API_KEYS, optional=True)
        return self._outward(task)

    def with_datasets(self, task: dsl.PipelineTask, chosen: Mapping[str, Any]) -> dsl.PipelineTask:
        """Lets a task read datasets wherever they may lie: on the Hub, in an object store or on the volume of data."""
        return self.with_data(self.with_object_store(self.with_hub(task, chosen), chosen))

    def with_data(self, task: dsl.PipelineTask) -> dsl.PipelineTask:
        """Mounts the volume of data, where there is one; KFP has no setting that would make it read-only."""
        if self.options.data_claim:
            kubernetes.mount_pvc(task, self.options.data_claim, DATA)
        return task

    def _outward(self, task: dsl.PipelineTask) -> dsl.PipelineTask:
        """Gives a task what the way out of this cluster asks for; more than one reason to go out is the same way."""
        variables = dict(self.options.environment)
        if self.options.ca_config_map:
            variables = dict.fromkeys(AUTHORITY_VARIABLES, f"{AUTHORITIES}/ca.crt") | variables
            mounted = task.platform_config.get("kubernetes", {}).get("configMapAsVolume", [])
            if not any(volume["mountPath"] == AUTHORITIES for volume in mounted):
                kubernetes.use_config_map_as_volume(task, self.options.ca_config_map, AUTHORITIES)
        for name, value in variables.items():
            task.set_env_variable(name, value)
        return task

    @property
    def model_store(self) -> dict[str, str]:
        """Settings of Load Base Model that follow from the volume of base models."""
        return {"store": "reference", "cache_dir": f"{MODEL_CACHE}/hub"} if self.options.model_cache else {}

    @property
    def checkpoint_root(self) -> str:
        """Folder for the checkpoints of all trainings; empty without a volume for them."""
        return CHECKPOINTS if self.options.checkpoints else ""
