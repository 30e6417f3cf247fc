"""What holds for every test: one thread a process, since more processes run than there are cores."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAYON_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# Digests of images that somebody has pushed would change the compiled YAML.
os.environ.setdefault("LLM_FINETUNE_IMAGES", os.devnull)

# A process takes whole files: begun last, these would keep one busy for minutes while the others wait.
LONGEST = (
    "test_local_run.py",
    "test_many_gpus.py",
    "test_vllm_serve_local.py",
    "test_local_mistakes.py",
    "test_launch_processes.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))
