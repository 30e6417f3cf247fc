"""Where the figures of a training go besides its page: TensorBoard's files, MLflow, Weights & Biases."""

import importlib.util
import os
from pathlib import Path
from typing import Any

from llm_finetune.components.shared.errors import UserError, nearest
from llm_finetune.components.shared.settings import split_names

# tracker → (package, variable that says where, what the variable holds)
TRACKERS = {
    "mlflow": ("mlflow", "MLFLOW_TRACKING_URI", "the address of the MLflow server"),
    "wandb": ("wandb", "WANDB_API_KEY", "the key of your Weights & Biases account"),
}


def trackers(names: str) -> list[str]:
    """Returns the trackers that transformers shall report to.

    Args:
        names: The setting `report_to`: names separated by commas; empty for none.

    Raises:
        UserError: If a tracker is unknown, its package is not installed or its variable is not set.
    """
    chosen = split_names(names)
    for name in chosen:
        if name not in TRACKERS:
            raise UserError(
                f"report_to: unknown tracker {name!r}{nearest(name, TRACKERS)} (known: {', '.join(TRACKERS)}; "
                "TensorBoard's files are written always, as the artifact training_logs)"
            )
        package, variable, meaning = TRACKERS[name]
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"report_to = {names!r}: the package {package} is not installed in this image. Build the train image "
                f"with it, or leave {name!r} out"
            )
        if not os.environ.get(variable):
            raise UserError(
                f"report_to = {names!r}: the variable {variable} ({meaning}) is not set in this step. Set it, from a "
                f"secret for instance, or leave {name!r} out"
            )
    return chosen


def tensorboard(folder: Path) -> Any:
    """Returns the callback that writes TensorBoard's event files into a folder."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(log_dir=str(folder)))
