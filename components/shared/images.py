"""The image families of the cards, as component decorators.

Importing this module imports kfp: only the cards' `component.py` does so.
"""

import functools
import json
import os
from importlib.metadata import version
from pathlib import Path

from kfp import dsl

DEFAULT_REGISTRY = "ghcr.io/llm-finetune"
# Digests of the images that `make images PUSH=1` has pushed; an installed package has no such file beside it.
PUSHED = Path(os.environ.get("LLM_FINETUNE_IMAGES") or Path(__file__).resolve().parents[2] / "build" / "images.json")


def image(family: str) -> str:
    """Returns an image family's reference.

    A registry named in LLM_FINETUNE_REGISTRY comes first, with the package version as the tag; then the digest of what
    has been pushed for this version; then the published images.
    """
    tagged = f"{os.environ.get('LLM_FINETUNE_REGISTRY') or DEFAULT_REGISTRY}/{family}:{version('llm-finetune')}"
    if os.environ.get("LLM_FINETUNE_REGISTRY") or not PUSHED.is_file():
        return tagged
    pushed = json.loads(PUSHED.read_text(encoding="utf-8"))
    return str(pushed["images"].get(family, tagged)) if pushed["version"] == version("llm-finetune") else tagged


# The images carry kfp already: nothing is installed when a step starts.
data_component = functools.partial(dsl.component, base_image=image("data"), install_kfp_package=False)
train_component = functools.partial(dsl.component, base_image=image("train"), install_kfp_package=False)
control_component = functools.partial(dsl.component, base_image=image("control"), install_kfp_package=False)
