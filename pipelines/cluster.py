"""What every task asks of the cluster, set when the pipeline is compiled."""

from dataclasses import dataclass
from typing import Any

from kfp import dsl, kubernetes

HF_TOKEN_SECRET = "hf-token"


@dataclass(frozen=True)
class Size:
    """Requests of a task.

    Attributes:
        cpu: Processors requested.
        memory: Memory requested, and its limit.
    """

    cpu: str
    memory: str


SMALL, DATA, MODEL, TRAIN = Size("250m", "512Mi"), Size("2", "4Gi"), Size("2", "8Gi"), Size("8", "48Gi")


def place(task: dsl.PipelineTask, title: str, size: Size, cached: bool = True, retries: int = 0) -> dsl.PipelineTask:
    """Names a task and asks for processors and memory.

    Args:
        task: The task.
        title: Its name in the dashboard.
        size: What it requests.
        cached: Whether an earlier result for the same inputs may be taken.
        retries: How often it is tried again, with growing pauses; only for what can pass by itself.

    Returns:
        The task.
    """
    task.set_display_name(title).set_caching_options(cached)
    task.set_cpu_request(size.cpu).set_memory_request(size.memory).set_memory_limit(size.memory)
    if retries:
        task.set_retry(retries, backoff_duration="30s", backoff_factor=2, backoff_max_duration="600s")
    return task


def on_gpu(task: dsl.PipelineTask, gpu_type: Any, gpu_count: Any) -> dsl.PipelineTask:
    """Asks for GPUs and the shared memory that their processes exchange data through.

    Args:
        task: The task.
        gpu_type: Resource name, such as nvidia.com/gpu; a pipeline parameter.
        gpu_count: Number of GPUs as text: the backend takes a number for none; a pipeline parameter.

    Returns:
        The task.
    """
    task.set_accelerator_type(gpu_type).set_accelerator_limit(gpu_count)
    # The compiler does not declare accelerator parameters as inputs; inside a condition they would not resolve.
    channels = [value for value in (gpu_type, gpu_count) if not isinstance(value, str)]
    task.register_pipeline_channels(channels)
    kubernetes.empty_dir_mount(task, volume_name="dshm", mount_path="/dev/shm", medium="Memory")
    return task


def with_hub_token(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Gives a task the Hugging Face token of the namespace's secret, where there is one."""
    kubernetes.use_secret_as_env(task, HF_TOKEN_SECRET, {"token": "HF_TOKEN"}, optional=True)
    return task
