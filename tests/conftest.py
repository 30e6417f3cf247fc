"""What holds for every test: one thread a process, since as many processes run as there are cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAYON_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault(
    "LLM_FINETUNE_IMAGES", os.devnull
)  # digests that somebody has pushed would change the compiled YAML
