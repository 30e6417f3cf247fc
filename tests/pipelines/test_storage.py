"""Weights by reference: every card that needs them reads them from the volume, offline, and learns the same."""

from pathlib import Path

import pytest
from fake_hub import FakeHub, serving
from huggingface_hub import constants
from tiny import tiny_model
from token_rows import documents, write

from llm_finetune.components.model.apply_lora import step as apply_lora
from llm_finetune.components.model.load_model import step as load_model
from llm_finetune.components.serving.merge_export import step as merge_export
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.base_model import resolve
from llm_finetune.components.training.finetune_lora import step as finetune_lora


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with serving() as running, pytest.MonkeyPatch.context() as patch:
        patch.delenv("HF_TOKEN", raising=False)
        patch.setattr(constants, "ENDPOINT", running.url)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        running.repos["org/tiny"] = tiny_model(tmp_path_factory.mktemp("hub") / "tiny", layers=1)
        yield running


def chain(folder: Path, volume: Path, store: str) -> Path:
    """Loads with network; then adapts, trains and merges without."""
    settings = load_model.Settings(
        model_name="org/tiny", store=store, cache_dir=str(volume / "hub"), load_in_4bit=False
    )
    load_model.load_model(folder / "model_config", folder / "summary.md", settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        base = folder / "model_config"
        apply_lora.apply_lora(base, folder / "lora", folder / "lora.md", apply_lora.Settings(r=4), load_in_4bit=False)
        finetune_lora.finetune_lora(
            base, folder / "lora", write(folder / "train", documents(8, 1)), write(folder / "val", documents(4, 2)),
            folder / "ft_result", folder / "curve.html",
            finetune_lora.Settings(num_epochs=1, learning_rate=1e-2, dtype="float32", evaluate_first=False),
        )  # fmt: skip
        merge_export.merge_export(
            base, folder / "ft_result", folder / "merged_model", folder / "merged.md", merge_export.Settings()
        )
    return folder


@pytest.fixture(scope="module")
def copied(hub, tmp_path_factory):
    return chain(tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("none"), "copy")


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    return tmp_path_factory.mktemp("volume")


@pytest.fixture(scope="module")
def referenced(hub: FakeHub, copied, volume, tmp_path_factory):
    sent = hub.sent
    folder = chain(tmp_path_factory.mktemp("reference"), volume, "reference")
    weights = (hub.repos["org/tiny"] / "model.safetensors").stat().st_size
    assert weights <= hub.sent - sent < 2 * weights  # once, into the volume
    return folder


@pytest.mark.parametrize("result", ["ft_result/adapter_model.safetensors", "merged_model/model.safetensors"])
def test_the_result_is_the_same_to_the_byte(copied, referenced, result):
    assert (referenced / result).read_bytes() == (copied / result).read_bytes()


def test_no_weights_of_the_base_travel_through_artifacts(copied, referenced):
    assert list((copied / "model_config").glob("*.safetensors"))
    assert not list((referenced / "model_config").glob("*.safetensors"))
    assert sum(file.stat().st_size for file in (referenced / "model_config").iterdir()) < 100_000


def test_an_emptied_volume_is_told_before_anything_is_computed(referenced, volume, monkeypatch):
    (volume / "hub").rename(volume / "gone")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"mount the same volume here; if it was emptied, run that card again"):
        resolve(referenced / "model_config")
