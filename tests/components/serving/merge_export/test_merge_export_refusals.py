"""Merge & Export: adapters, results and settings that don't become a merged model."""

from pathlib import Path

import pytest
from merge_export_adapter import export, fixture_adapter, fixture_base, fixture_one_thread, fixture_trained  # noqa: F401
from safetensors.torch import load_file, save_file
from tiny import tiny_model

from llm_finetune.components.serving.merge_export import parity, shards, step
from llm_finetune.components.shared.errors import UserError


def test_a_merge_that_changes_the_answers_is_refused(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The adapter is lost on the way into the files.
    monkeypatch.setattr(shards, "_changing_modules", lambda _: {})
    with pytest.raises(UserError, match=r"differs from the adapter: on 16 validation rows .* loss \d+\.\d{4}, the"):
        export(base, adapter, tmp_path)
    assert not (tmp_path / "merged").exists()
    assert not (tmp_path / "merged.partial").exists()


def test_the_tolerances_are_settings(base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"at most 1e-07 apart"):
        export(base, adapter, tmp_path, dtype="bfloat16", loss_tolerance=1e-7)


def test_figures_that_are_not_finite_are_refused() -> None:
    figures = parity.Parity(1, 10, 1.0, float("nan"), float("nan"), 1.0, float("nan"))
    assert "the merged model nan" in parity.Tolerances(0.05, 0.95).violation(figures)


def test_an_adapter_with_values_that_are_not_finite(base: Path, adapter: Path, tmp_path: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    next(value for name, value in weights.items() if "lora_B" in name).fill_(float("nan"))
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="would have values that are not finite"):
        export(base, adapter, tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "training.json").unlink(), "no training.json"),
        (lambda folder: (folder / "parity_prompts.json").unlink(), "no parity_prompts.json"),
        (lambda folder: (folder / "parity_prompts.json").write_text("[]"), "no parity_prompts.json"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "no chat template"),
        (lambda folder: (folder / "generation_config.json").unlink(), "never stop"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "no adapter_config.json"),
    ],
)
def test_results_that_lack_something(base: Path, adapter: Path, tmp_path: Path, damage: object, message: str) -> None:
    damage(adapter)
    with pytest.raises(UserError, match=message):
        export(base, adapter, tmp_path)
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_another_model(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not match the base model"):
        export(tiny_model(tmp_path / "wide", hidden=96), trained, tmp_path)
    with pytest.raises(UserError, match=r"have token 3\d\d, but the base model has 300 embeddings"):
        export(tiny_model(tmp_path / "short", vocabulary=300), trained, tmp_path)


def test_impossible_settings() -> None:
    with pytest.raises(UserError, match=r"push_to_hub needs hub_repo = owner/name, and it is ''"):
        step.Settings.of({"push_to_hub": True})
    with pytest.raises(UserError, match="save_format = 'gguf'"):
        step.Settings.of({"save_format": "gguf"})
