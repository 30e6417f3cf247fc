"""Checkpoints in real object stores: a new pod goes on from what an earlier one sent; nothing half-sent is taken."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from object_stores import Store, gcs_store, s3_store
from peft import LoraConfig
from tiny import tiny_model
from token_rows import documents, write

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.training.finetune_lora import checkpoints, remote, step
from llm_finetune.components.training.finetune_lora.trainer import ProgressCallback


class Killed(BaseException):
    """Stands for a pod that is lost."""


@pytest.fixture(scope="module", params=[s3_store, gcs_store], ids=["s3", "gs"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with request.param(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    LoraConfig(r=4, lora_dropout=0.2, target_modules=["q_proj"], task_type="CAUSAL_LM").save_pretrained(folder / "lora")
    return {
        "model_config": tiny_model(folder / "base"),
        "lora_config": folder / "lora",
        "train_tokens": write(folder / "train", documents(8, seed=1)),
        "val_tokens": write(folder / "val", documents(4, seed=2)),
    }


def train(inputs: dict[str, Path], out: Path, **settings: object) -> bytes:
    common = {"num_epochs": 2, "learning_rate": 1e-2, "dtype": "float32", "checkpoint_steps": 1}
    chosen = step.Settings(**{**common, **settings})
    step.finetune_lora(**inputs, ft_result=out / "ft", loss_curve=out / "c.html", settings=chosen)
    return (out / "ft" / "adapter_model.safetensors").read_bytes()


def parts(store: Store, depth: int) -> set[str]:
    """Returns the names that the store's keys have at a depth."""
    keys = store.keys()
    return {key.split("/")[depth] for key in keys}


def test_a_new_pod_goes_on_from_the_newest_whole_checkpoint(
    store: Store,
    inputs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = train(inputs, tmp_path / "whole")
    place = store.url("runs")
    own = ProgressCallback.on_step_end

    def lost(self, args, state, control, **others):
        if state.global_step == 4:
            raise Killed
        return own(self, args, state, control, **others)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(ProgressCallback, "on_step_end", lost)
        train(inputs, tmp_path / "lost", checkpoint_root=place)
    (name,) = parts(store, 1)
    sent = f"runs/{name}"
    assert parts(store, 2) == {"fingerprint.json", "checkpoint-2", "checkpoint-3"}

    store.put(f"{sent}/checkpoint-3/optimizer.pt", b"cut")
    store.put(f"{sent}/checkpoint-4/adapter_model.safetensors", b"without a manifest")
    assert train(inputs, tmp_path / "again", checkpoint_root=place) == whole
    told = capsys.readouterr().out
    assert "checkpoint-3 is incomplete (a file has another size)" in told
    assert "checkpoint-4 is incomplete (the process stopped during the upload)" in told
    assert f"resuming from {remote.local_folder(store.url(sent))}/checkpoint-2" in told
    assert parts(store, 2) == {"fingerprint.json", "checkpoint-3", "checkpoint-4"}
    assert not remote.local_folder(store.url(sent)).exists()

    with pytest.raises(UserError, match=r"belong to another training .*seed: 42 there, 7 here"):
        train(inputs, tmp_path / "other", checkpoint_folder=store.url(sent), seed=7)


def test_checkpoints_of_others_in_a_store_stay(store: Store, inputs: dict[str, Path], tmp_path: Path) -> None:
    """Checkpoints of another program have no manifest, and neither have incomplete ones of ours."""
    theirs = {f"theirs/checkpoint-{step}/model.safetensors" for step in (500, 1000)}
    for key in theirs:
        store.put(key, b"theirs")
    with pytest.raises(
        UserError, match=r"theirs contains checkpoint-1000, checkpoint-500, which this suite did not write"
    ):
        train(inputs, tmp_path, checkpoint_folder=store.url("theirs"))
    assert {key for key in store.keys() if key.startswith("theirs/")} == theirs  # noqa: SIM118 - a method of ours


def test_checkpoints_of_others_in_a_folder_stay(inputs: dict[str, Path], tmp_path: Path) -> None:
    theirs = tmp_path / "theirs" / "checkpoint-500" / "model.safetensors"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    with pytest.raises(UserError, match=r"theirs contains checkpoint-500, which this suite did not write"):
        train(inputs, tmp_path, checkpoint_folder=str(tmp_path / "theirs"))
    assert theirs.read_bytes() == b"theirs"


def test_a_store_that_refuses_is_named_before_the_training(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint_folder = 'nowhere://x': Protocol not known"):
        train(inputs, tmp_path, checkpoint_folder="nowhere://x")
    with pytest.raises(UserError, match=r"cannot be written: .* or keep the checkpoints on a volume"):
        remote.RemoteCheckpoints("file:///proc/none").download(tmp_path)


def test_a_store_that_is_out_of_reach_does_not_end_the_training(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def down(*_: object) -> None:
        raise OSError("the network is down")

    monkeypatch.setattr(remote, "upload_file", down)
    train(inputs, tmp_path, checkpoint_folder="memory://down", num_epochs=1)
    assert "checkpoint 1 was not copied to memory://down: OSError: the network is down." in capsys.readouterr().out


def test_two_trainings_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "LOCK_TIMEOUT_SECONDS", 1.0)
    with (
        checkpoints.lock_folder(tmp_path / "c"),
        pytest.raises(UserError, match="another training is writing its checkpoints"),
        checkpoints.lock_folder(tmp_path / "c"),
    ):
        pass
    with checkpoints.lock_folder(tmp_path / "c"):
        pass
    with (
        pytest.raises(UserError, match="the checkpoint folder /proc/none cannot be written to"),
        checkpoints.lock_folder(Path("/proc/none")),
    ):
        pass
