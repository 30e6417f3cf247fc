"""Component decorators of the image families `data`, `train` and `control`.

This module imports kfp, so only `component.py` files import it.
"""

import functools
import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kfp import dsl

# A decorator turns a function into a component of KFP, which has no types.
Decorator = Callable[[], Callable[[Callable[..., object]], Any]]
DEFAULT_REGISTRY = "ghcr.io/llm-finetune"
ROOT = Path(__file__).resolve().parents[2]
# Written by `make images PUSH=1`; an installed package has no such file.
PUSHED_IMAGES = Path(os.environ.get("LLM_FINETUNE_IMAGES") or ROOT / "build" / "images.json")


def image_reference(family: str) -> str:
    """Returns the image reference of an image family.

    In this order: the registry in LLM_FINETUNE_REGISTRY with the package version as the tag; the digest pushed for
    this version; the default registry with the package version as the tag.
    """
    tagged = f"{os.environ.get('LLM_FINETUNE_REGISTRY') or DEFAULT_REGISTRY}/{family}:{version('llm-finetune')}"
    if os.environ.get("LLM_FINETUNE_REGISTRY") or not PUSHED_IMAGES.is_file():
        return tagged
    pushed = json.loads(PUSHED_IMAGES.read_text(encoding="utf-8"))
    return str(pushed["images"].get(family, tagged)) if pushed["version"] == version("llm-finetune") else tagged


# kfp is part of the images; a step installs nothing.
_component = functools.partial(dsl.component, install_kfp_package=False)
data_component: Decorator = functools.partial(_component, base_image=image_reference("data"))
train_component: Decorator = functools.partial(_component, base_image=image_reference("train"))
control_component: Decorator = functools.partial(_component, base_image=image_reference("control"))
