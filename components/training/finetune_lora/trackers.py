"""Experiment trackers: TensorBoard's event files, MLflow, Weights & Biases."""

import importlib.util
import os
from pathlib import Path

from transformers import TrainerCallback

from llm_finetune.components.shared.errors import UserError, nearest
from llm_finetune.components.shared.settings import split_names

# tracker → (package, environment variable, meaning of the variable)
TRACKERS = {
    "mlflow": ("mlflow", "MLFLOW_TRACKING_URI", "the address of the MLflow server"),
    "wandb": ("wandb", "WANDB_API_KEY", "the key of your Weights & Biases account"),
}


def validate_trackers(names: str) -> list[str]:
    """Returns the trackers for `report_to` of transformers.

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
                "TensorBoard's event files are always written, as the artifact training_logs)"
            )
        package, variable, meaning = TRACKERS[name]
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"report_to = {names!r}: the package {package} is not installed in this image. Build the train image "
                f"with it, or remove {name!r}"
            )
        if not os.environ.get(variable):
            raise UserError(
                f"report_to = {names!r}: the variable {variable} ({meaning}) is not set in this step. Set it, for "
                f"example from a secret, or remove {name!r}"
            )
    return chosen


def tensorboard(folder: Path) -> TrainerCallback:
    """Returns the callback that writes TensorBoard's event files into a folder."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    callback: TrainerCallback = TensorBoardCallback(SummaryWriter(log_dir=str(folder)))
    return callback
