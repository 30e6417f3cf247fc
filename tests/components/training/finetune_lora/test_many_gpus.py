"""Several processes: the rows each gets, and the whole training on two gloo processes against one."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from peft import LoraConfig
from safetensors.torch import load_file
from test_finetune_lora import documents, write
from tiny import tiny_model

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.training.finetune_lora import step
from llm_finetune.components.training.finetune_lora.order import EpochLengthSampler, ProcessBatchSampler
from llm_finetune.components.training.finetune_lora.parallel import MemoryEstimates, choose_plan, sharding_obstacle

ROWS = 21  # five steps of 4 rows and one of a single row, which leaves one of two processes without any


@settings(max_examples=60, deadline=None)
@given(
    rows=some.integers(1, 60),
    processes=some.integers(1, 5),
    micro=some.integers(1, 4),
    accumulation=some.integers(1, 3),
)
def test_every_row_is_trained_once_and_every_process_has_as_many_batches(rows, processes, micro, accumulation):
    order = EpochLengthSampler(micro * accumulation * processes, [1 + row % 7 for row in range(rows)], seed=3)
    batches = ProcessBatchSampler(order, rows, processes, micro, accumulation)
    batches.set_epoch(1)
    dealt = list(batches)
    assert len(dealt) == len(batches) and len(dealt) % processes == 0
    real = [row for batch in dealt for row in batch if row != rows]
    assert sorted(real) == list(range(rows))
    assert all(batch == [rows] or (rows not in batch and 0 < len(batch) <= micro) for batch in dealt)
    # A step's rows are those of one process with a batch as large as all of theirs.
    order.set_epoch(1)
    whole, size = list(order), micro * accumulation * processes
    turns = [
        dealt[start : start + accumulation * processes] for start in range(0, len(dealt), accumulation * processes)
    ]
    taken = [sorted(row for batch in turn for row in batch if row != rows) for turn in turns]
    assert taken == [sorted(whole[start : start + size]) for start in range(0, rows, size)]


def needed(whole: float) -> MemoryEstimates:
    return MemoryEstimates(whole, whole / 2, whole / 4, whole / 8)


@pytest.mark.parametrize(
    ("asked", "processes", "free", "sharded", "checkpointing", "why"),
    [
        ({}, 1, 0.0, False, False, "gradient checkpointing off, because there is no GPU memory to save"),
        (
            {},
            1,
            80.0,
            False,
            False,
            "off, because without it the training takes 60.0 GiB (estimated) and 80.0 are free",
        ),
        ({}, 1, 40.0, False, True, "on, because without it the training takes 60.0 GiB (estimated) and 40.0 are free"),
        ({"gradient_checkpointing": "off"}, 1, 40.0, False, False, "gradient checkpointing off, as set"),
        ({"gradient_checkpointing": "on"}, 1, 80.0, False, True, "gradient checkpointing on, as set"),
        ({}, 2, 40.0, False, True, "2 processes, each with all weights (DDP), because the model fits on each"),
        ({}, 2, 20.0, True, False, "(FSDP2), because all weights on each take 30.0 GiB and 20.0 are free"),
        ({}, 2, 10.0, True, True, "(FSDP2), because"),
        ({"parallel": "ddp"}, 2, 10.0, False, True, "(DDP), as set"),
        ({"parallel": "fsdp"}, 2, 0.0, True, False, "(FSDP2), as set"),
        ({"parallel": "fsdp"}, 1, 80.0, False, False, "off, because"),
    ],
)
def test_the_fastest_layout_that_fits_is_chosen(asked, processes, free, sharded, checkpointing, why):
    plan = choose_plan(step.Settings(**asked), processes, "", needed(60.0), free)
    assert (plan.sharded, plan.checkpointing) == (sharded, checkpointing)
    assert any(why in reason for reason in plan.reasons), plan.reasons


def test_what_cannot_be_divided_stays_whole():
    obstacle = sharding_obstacle(LoraConfig(use_dora=True), False)
    plan = choose_plan(step.Settings(), 2, obstacle, needed(60.0), 20.0)
    assert not plan.sharded and plan.reasons[1].endswith("(DDP), because DoRA (use_dora) reads unsharded weights")
    assert "4 bit" in sharding_obstacle(LoraConfig(), True)
    assert "modules_to_save" in sharding_obstacle(LoraConfig(modules_to_save=["lm_head"]), False)
    assert "pissa" in sharding_obstacle(LoraConfig(init_lora_weights="pissa"), False)
    assert sharding_obstacle(LoraConfig(), False) == ""


class World:
    """A tiny model and rows, and trainings on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM").save_pretrained(
            folder / "lora"
        )
        self.inputs = {
            "model_config": tiny_model(folder / "base"),
            "lora_config": folder / "lora",
            "train_tokens": write(folder / "train", documents(ROWS, seed=1)),
            "val_tokens": write(folder / "val", documents(10, seed=2)),
        }

    def train(self, name: str, checkpoints: str = "", **settings):
        chosen = {
            "num_epochs": 2, "learning_rate": 1e-2, "logging_steps": 1, "dtype": "float32",
            "checkpoint_folder": str(self.checkpoints(checkpoints or name)), **settings,
        }  # fmt: skip
        out = self.folder / name
        return step.finetune_lora(
            **self.inputs, ft_result=out / "ft", loss_curve=out / "curve.html", training_logs=out / "logs",
            settings=step.Settings(**chosen),
        )  # fmt: skip

    def checkpoints(self, name: str) -> Path:
        return self.folder / name / "checkpoints"

    def adapter(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / name / "ft" / "adapter_model.safetensors")

    def losses(self, name: str) -> list[float]:
        newest = max(self.checkpoints(name).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        history = json.loads((newest / "trainer_state.json").read_text())["log_history"]
        return [entry[key] for entry in history for key in ("loss", "eval_loss") if key in entry]

    def kill_when_saved(self, name: str, at: int) -> SimpleNamespace:
        """Kills the second process of a training as soon as a checkpoint is there; returns when, and all of them."""
        killed = SimpleNamespace(ranks=[], at=0.0)

        def kill() -> None:
            deadline = time.monotonic() + 240
            while not (self.checkpoints(name) / f"checkpoint-{at}").exists() and time.monotonic() < deadline:
                time.sleep(0.005)
            children = psutil.Process().children()
            killed.ranks = [child for child in children if "finetune_lora.rank" in str(child.cmdline())]
            killed.at = time.monotonic()
            os.kill(next(rank.pid for rank in killed.ranks if rank.environ()["RANK"] == "1"), signal.SIGKILL)

        threading.Thread(target=kill, daemon=True).start()
        return killed


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


def test_two_processes_learn_what_one_does_over_a_kill_and_whichever_way_they_share_the_model(world):
    """FSDP2 up to a SIGKILL, DDP from its checkpoint on: the loss curve and the adapter of one process."""
    alone = world.train("alone", batch_size=4, checkpoint_steps=2)
    killed = world.kill_when_saved("two", at=8)
    with pytest.raises(
        UserError, match=r"process 1 of 2 \(0 to 1\) was killed by SIGKILL, and the others were terminated"
    ):
        world.train("two", batch_size=2, processes=2, checkpoint_steps=2, parallel="fsdp")
    assert time.monotonic() - killed.at < 60
    assert len(killed.ranks) == 2 and not any(rank.is_running() for rank in killed.ranks)
    assert not (world.folder / "two" / "ft").exists()
    facts = world.train("two", batch_size=2, processes=2, checkpoint_steps=2, parallel="ddp")
    assert facts.processes == 2 and facts.resumed_from_step >= 8 and facts.steps == alone.steps == 12
    assert world.losses("two") == pytest.approx(world.losses("alone"), rel=1e-5)
    assert facts.val_loss == pytest.approx(alone.val_loss, rel=1e-5)
    one, two = world.adapter("alone"), world.adapter("two")
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-5) for name in one)
    assert list((world.folder / "two" / "logs").glob("events.out.tfevents.*"))


@pytest.mark.soak
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_killed_training_of_two_processes_ends_with_the_same_bytes(world, parallel):
    asked = {"batch_size": 1, "gradient_accumulation_steps": 2, "processes": 2, "checkpoint_steps": 2}
    world.train(f"{parallel}-whole", parallel=parallel, **asked)
    name = f"{parallel}-killed"
    world.kill_when_saved(name, at=8)
    with pytest.raises(UserError, match="SIGKILL"):
        world.train(name, parallel=parallel, **asked)
    assert world.train(name, parallel=parallel, **asked).resumed_from_step >= 8
    files = [world.folder / which / "ft" / "adapter_model.safetensors" for which in (f"{parallel}-whole", name)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert world.losses(name) == world.losses(f"{parallel}-whole")
