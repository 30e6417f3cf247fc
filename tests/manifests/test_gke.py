"""overlays/gke: each kind of GPU, and the machine that its trainings fit on."""

import pytest
import yaml
from manifests.kustomize import GPUS, MANIFESTS, ROOT, build, named

from llm_finetune.pipelines.options import read_options
from llm_finetune.pipelines.recipe import read_recipe

# Google's machine types with one GPU: processors and GiB.
MACHINES = {"l4": ("g2-standard-12", 12, 48), "a100": ("a2-ultragpu-1g", 12, 170), "h100": ("a3-highgpu-1g", 26, 234)}
# What GKE keeps of a machine for itself: shares of the first so many processors or GiB, of the next, and so on.
PROCESSORS = ((1, 0.06), (1, 0.01), (2, 0.005), (10**6, 0.0025))
MEMORY = ((4, 0.25), (4, 0.20), (8, 0.10), (112, 0.06), (10**6, 0.02))
EVICTION_GIB = 0.1
# The kernel's own part of memory, and the agents that run on every node.
KERNEL_SHARE, AGENTS_CPU, AGENTS_GIB = 0.02, 0.7, 0.8


def kept(size: float, steps: tuple[tuple[int, float], ...]) -> float:
    """Returns what is kept of a size."""
    taken = 0.0
    for width, share in steps:
        part = min(size, width)
        taken, size = taken + part * share, size - part
    return taken


def room(gpu: str) -> tuple[float, float]:
    """Returns the processors and GiB that a machine leaves to our pods."""
    _, processors, memory = MACHINES[gpu]
    memory_room = memory * (1 - KERNEL_SHARE) - kept(memory, MEMORY) - EVICTION_GIB - AGENTS_GIB
    return processors - kept(processors, PROCESSORS) - AGENTS_CPU, memory_room


@pytest.mark.parametrize("gpu", GPUS)
def test_recipe_is_that_of_the_gpu(gpu: str) -> None:
    recipe = read_recipe(MANIFESTS / f"overlays/gke/gpus/{gpu}/recipe.yaml").recipe
    assert gpu in recipe["cluster"]["node_selector"]["cloud.google.com/gke-accelerator"]
    assert recipe["apply_lora"]["gpu_memory_gib"] == (22 if gpu == "l4" else 79)


@pytest.mark.parametrize("gpu", GPUS)
def test_trainings_and_servers_fit_the_machine_that_is_named(gpu: str) -> None:
    folder = MANIFESTS / f"overlays/gke/gpus/{gpu}"
    size = read_options(folder / "compile.yaml", []).size("train")
    container = named(build(MANIFESTS / "overlays/gke"), "ServingRuntime", "llm-vllm")["spec"]["containers"][0]
    server = container["resources"]["requests"]
    processors, memory = room(gpu)
    for cpu, gib in ((size.cpu, size.memory), (server["cpu"], server["memory"])):
        assert float(cpu) <= processors and float(gib.removesuffix("Gi")) <= memory
    machine = MACHINES[gpu][0]
    for text in (folder / "kustomization.yaml", folder / "compile.yaml", ROOT / "docs/cluster.md"):
        assert machine in text.read_text(), text


def test_sizes_are_the_only_difference() -> None:
    options = [yaml.safe_load((MANIFESTS / f"overlays/gke/gpus/{gpu}/compile.yaml").read_text()) for gpu in GPUS]
    assert all(option.keys() == {"model_cache", "checkpoints", "sizes"} for option in options)
    assert all(option["model_cache"] and option["checkpoints"] for option in options)
