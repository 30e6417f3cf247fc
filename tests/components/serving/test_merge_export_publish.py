"""Merge & Export: what reaches a Hub, through its real client."""

import os
from pathlib import Path

import pytest
from fake_hub import FakeHub, serving
from huggingface_hub import constants

from llm_finetune.components.serving.merge_export import publish
from llm_finetune.components.shared.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "merged"
    (root / "adapter").mkdir(parents=True)
    (root / "model.safetensors").write_bytes(os.urandom(3000))
    (root / "config.json").write_text("{}")
    (root / "adapter" / "adapter_config.json").write_text('{"r": 4}')
    return root


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    with serving() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        running.tokens.add("hf_right")
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        yield running


def test_a_push_brings_every_file(hub: FakeHub, folder: Path) -> None:
    publish.check_hub()
    url = publish.push(folder, "someone/tuned", private=True, message="Fine-tuned org/base")
    assert hub.created["someone/tuned"]["visibility"] == "private"
    assert hub.uploads["someone/tuned"] == {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()
    }
    assert url.startswith(f"{hub.url}/someone/tuned/commit/")


def test_a_push_leaves_nothing_of_an_earlier_model(hub: FakeHub, folder: Path) -> None:
    old = {"model-00001-of-00002.safetensors", "model.safetensors.index.json", "adapter/adapter_model.safetensors"}
    kept = {"images/loss.png", "onnx/model.bin", "NOTES.md"}
    hub.uploads["someone/tuned"] = dict.fromkeys({*old, *kept, "model.safetensors"}, b"old")
    publish.push(folder, "someone/tuned", private=True, message="Fine-tuned org/base")
    new = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert hub.uploads["someone/tuned"].keys() == kept | new
    assert hub.uploads["someone/tuned"]["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_a_push_without_a_right_token(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="does not accept the token in HF_TOKEN") as refused:
        publish.check_hub()
    assert "hf_wrong" not in str(refused.value)
    with pytest.raises(
        UserError, match=r"pushing to someone/tuned was answered with 403: the token in HF_TOKEN may not"
    ):
        publish.push(folder, "someone/tuned", private=True, message="m")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="push_to_hub needs a token"):
        publish.check_hub()
