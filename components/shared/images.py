"""The image families of the cards, as component decorators.

Importing this module imports kfp: only the cards' `component.py` does so.
"""

import functools
import os
from importlib.metadata import version

from kfp import dsl

REGISTRY = os.environ.get("LLM_FINETUNE_REGISTRY", "ghcr.io/llm-finetune")


def image(family: str) -> str:
    """Returns an image family's reference; its tag is the package version."""
    return f"{REGISTRY}/{family}:{version('llm-finetune')}"


# The images carry kfp already: nothing is installed when a step starts.
data_component = functools.partial(dsl.component, base_image=image("data"), install_kfp_package=False)
train_component = functools.partial(dsl.component, base_image=image("train"), install_kfp_package=False)
control_component = functools.partial(dsl.component, base_image=image("control"), install_kfp_package=False)
