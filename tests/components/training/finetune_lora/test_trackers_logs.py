"""Trackers: TensorBoard's files, and MLflow and Weights & Biases when they can be reached."""

import importlib.util

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerControl, TrainerState, TrainingArguments

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.training.finetune_lora import trackers


def test_tensorboard_files_hold_the_figures_by_step(tmp_path):
    callback = trackers.tensorboard(tmp_path / "logs")
    args, state, control = TrainingArguments(output_dir=str(tmp_path)), TrainerState(), TrainerControl()
    callback.on_train_begin(args, state, control)
    for state.global_step, loss in ((1, 2.5), (2, 1.5)):
        callback.on_log(args, state, control, logs={"loss": loss, "eval_loss": 3.0})
    callback.on_train_end(args, state, control)
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 2.5), (2, 1.5)]
    assert "eval/loss" in events.Tags()["scalars"]


def test_trackers_are_used_when_asked_for_and_reachable(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert trackers.validate_trackers("") == []
    assert trackers.validate_trackers(" wandb, mlflow,wandb ") == ["wandb", "mlflow"]


@pytest.mark.parametrize(
    ("asked", "installed", "message"),
    [
        ("mlfow", True, "unknown tracker 'mlfow'; did you mean 'mlflow'?"),
        ("mlflow", False, "the package mlflow is not installed in this image"),
        ("mlflow", True, "the variable MLFLOW_TRACKING_URI .* is not set in this step"),
        ("wandb", True, "the variable WANDB_API_KEY .* is not set in this step"),
    ],
)
def test_a_tracker_that_cannot_be_reached_is_refused(monkeypatch, asked, installed, message):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        trackers.validate_trackers(asked)
