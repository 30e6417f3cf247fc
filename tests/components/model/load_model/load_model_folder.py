"""A tiny model in a folder, and runs of Load Base Model."""

from pathlib import Path

import pytest
from tiny import tiny_model

from llm_finetune.components.model.load_model import step


@pytest.fixture(name="original", scope="module")
def fixture_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_model(tmp_path_factory.mktemp("original") / "model", dtype="bfloat16")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    (folder / "LICENSE").write_text("Apache License")
    (folder / "model.bin").write_bytes(b"pickle")  # beside safetensors: passed over
    return folder


def load(tmp_path: Path, name: object, **settings: object) -> step.ModelFacts:
    chosen = step.Settings(model_name=str(name), cache_dir=str(tmp_path / "cache"), **settings)
    return step.load_model(tmp_path / "model_config", tmp_path / "summary.md", chosen)
