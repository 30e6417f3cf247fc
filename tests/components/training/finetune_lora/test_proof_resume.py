"""A training that dies anywhere ends with the same bytes when it is started again; another training's checkpoints are refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from tiny import tiny_model
from token_rows import documents, write
from transformers import AutoTokenizer

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.training.finetune_lora import checkpoints, step
from llm_finetune.components.training.finetune_lora.trainer import CompletionTrainer, ProgressCallback


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    LoraConfig(r=4, lora_dropout=0.2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM").save_pretrained(
        folder / "lora"
    )
    return {
        "model_config": tiny_model(folder / "base"),
        "lora_config": folder / "lora",
        "train_tokens": write(folder / "train", documents(12, seed=1)),
        "val_tokens": write(folder / "val", documents(4, seed=2)),
    }


def train(inputs: dict[str, Path], out: Path, fingerprint: dict[str, str] | None = None, **settings: object) -> bytes:
    chosen = step.Settings(
        **{
            "num_epochs": 2,
            "batch_size": 4,
            "learning_rate": 1e-2,
            "dtype": "float32",
            "checkpoint_steps": 1,
            **settings,
        }
    )
    step.finetune_lora(
        **inputs, ft_result=out / "ft", loss_curve=out / "c.html", settings=chosen, input_hashes=fingerprint
    )
    return (out / "ft" / "adapter_model.safetensors").read_bytes()


def test_a_training_that_dies_at_every_step_ends_with_the_same_bytes(inputs, tmp_path, monkeypatch):
    """Steps 1 to 6: dead after the step, while its manifest is written, before it is published, and after."""
    whole = train(inputs, tmp_path / "whole")
    originals = {
        "manifest": checkpoints.write_manifest,
        "publish": checkpoints.publish,
        "step": ProgressCallback.on_step_end,
    }
    deaths = iter([("step", 1), ("manifest", 1), ("publish", 2), ("after", 3), ("step", 5), ("manifest", 6)])
    plan: dict[str, tuple[str, int]] = {}

    def dying(where: str, number: int) -> None:
        if plan["next"] == (where, number):
            raise Killed

    def on_step_end(self, args, state, control, **others):
        dying("step", state.global_step)
        return originals["step"](self, args, state, control, **others)

    def write_manifest(folder: Path) -> None:
        dying("manifest", int(folder.name.split("-")[1]))
        originals["manifest"](folder)

    def publish(staged: Path, folder: Path) -> Path:
        number = int(staged.name.split("-")[1])
        dying("publish", number)
        final = originals["publish"](staged, folder)
        dying("after", number)
        return final

    monkeypatch.setattr(ProgressCallback, "on_step_end", on_step_end)
    monkeypatch.setattr(checkpoints, "write_manifest", write_manifest)
    monkeypatch.setattr(checkpoints, "publish", publish)
    folder = {"checkpoint_folder": str(tmp_path / "c")}
    for death in deaths:
        plan["next"] = death
        with pytest.raises(Killed):
            train(inputs, tmp_path / "killed", **folder)
        assert not (tmp_path / "killed" / "ft").exists()
    plan["next"] = ("never", 0)
    assert train(inputs, tmp_path / "killed", **folder) == whole


@pytest.mark.parametrize(
    ("name", "settings", "difference"),
    [
        ("train_tokens", {}, r"train_tokens: 'sha256:one' there, 'sha256:two' here"),
        ("model_config", {}, r"model_config: 'sha256:one' there, 'sha256:two' here"),
        ("", {"seed": 7}, r"seed: 42 there, 7 here"),
        ("lora_config", {"batch_size": 2}, r"batch_size: 4 there, 2 here; lora_config: 'sha256:one' there, 'sha256:two' here"),
    ],
)  # fmt: skip
def test_checkpoints_of_other_data_model_or_settings_are_refused_by_name(inputs, tmp_path, name, settings, difference):
    folder = tmp_path / "c"
    hashes = dict.fromkeys(("train_tokens", "model_config", "lora_config"), "sha256:one")
    chosen = step.Settings(checkpoint_folder=str(folder), batch_size=4)
    checkpoints.claim_folder(folder, {})  # an empty folder is anybody's
    shutil.rmtree(folder)
    with pytest.raises(Killed):
        _claim_only(inputs, chosen, hashes)
    with pytest.raises(UserError, match=difference):
        _claim_only(inputs, chosen.model_copy(update=settings), {**hashes, **({name: "sha256:two"} if name else {})})
    with pytest.raises(Killed):  # the right one still goes on
        _claim_only(inputs, chosen, hashes)
    assert json.loads((folder / checkpoints.FINGERPRINT).read_text())["train_tokens"] == "sha256:one"


def _claim_only(inputs, settings, hashes) -> None:
    """Runs the step up to the point where it has claimed its checkpoint folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "train", _killed)
        step.finetune_lora(**inputs, ft_result="-", loss_curve="-", settings=settings, input_hashes=hashes)


def _killed(job: object) -> None:
    raise Killed


def test_a_gpu_whose_memory_runs_out_says_what_to_change(inputs, tmp_path, monkeypatch):
    def training_step(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(CompletionTrainer, "training_step", training_step)
    with pytest.raises(UserError, match=r"ran out in training \(CUDA out .*GiB\.\)\. Lower tokens_per_micro_batch"):
        train(inputs, tmp_path)


def test_a_pad_token_that_is_the_end_token_changes_nothing(inputs, tmp_path):
    """Padding is masked by its position: with the end token as padding, every end is still learned."""
    own = train(inputs, tmp_path / "own", num_epochs=1)
    for split in ("train_tokens", "val_tokens"):
        shutil.copytree(inputs[split], tmp_path / split)
        tokenizer = AutoTokenizer.from_pretrained(inputs[split] / "tokenizer")
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.save_pretrained(tmp_path / split / "tokenizer")
    changed = {**inputs, **{split: tmp_path / split for split in ("train_tokens", "val_tokens")}}
    assert train(changed, tmp_path / "other", num_epochs=1) == own
