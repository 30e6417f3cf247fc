"""Merge & Export: the type of the merged weights is the narrowest that keeps what was trained."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from merge_export_adapter import export, fixture_adapter, fixture_base, fixture_one_thread, fixture_trained  # noqa: F401
from safetensors.torch import load_file, save_file

from llm_finetune.components.serving.merge_export import merge, parity, precision, step
from llm_finetune.components.shared.errors import UserError

ANY = {"loss_tolerance": 100.0, "min_agreement": 0.0}
NARROW = ("bfloat16", "float16")


@pytest.fixture(name="measured", scope="module")
def fixture_measured(base: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, step.MergeFacts]:
    """The figures of every type, each asked for."""
    return {
        dtype: export(base, trained, tmp_path_factory.mktemp(dtype), dtype=dtype, **ANY)
        for dtype in (*NARROW, "float32")
    }


def between(measured: dict[str, step.MergeFacts], wide: str, narrow: str) -> float:
    """Returns a tolerance that the wide type keeps and the narrow one does not."""
    kept, lost = (abs(measured[name].loss_difference) for name in (wide, narrow))
    assert kept < lost / 4
    return max(kept, 1e-9) ** 0.5 * lost**0.5


def changed(base: Path, folder: Path, name: str, change: object) -> Path:
    """Copies a base model with one of its weights changed."""
    copied = shutil.copytree(base, folder)
    weights = load_file(copied / "model.safetensors")
    change(weights[name])
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    return copied


def types_of(folder: Path) -> set[torch.dtype]:
    return {value.dtype for value in load_file(folder / "merged" / "model.safetensors").values()}


def test_the_next_type_is_taken_where_the_narrowest_loses_too_much(
    base: Path, adapter: Path, tmp_path: Path, measured: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = export(base, adapter, tmp_path, loss_tolerance=between(measured, "float16", "bfloat16"))
    assert facts.dtype == "float16" and types_of(tmp_path) == {torch.float16}
    assert facts.loss_difference == pytest.approx(measured["float16"].loss_difference, abs=1e-7)
    asked, chosen = tmp_path / "asked", tmp_path / "merged"
    export(base, adapter, asked, dtype="float16", **ANY)
    expected = load_file(asked / "merged" / "model.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in load_file(chosen / "model.safetensors").items())
    config = json.loads((chosen / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == ("float16", "float16")
    assert sorted(file.name for file in chosen.iterdir()) == sorted([
        "LICENSE", "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    ])  # fmt: skip
    lost = f"rejected: loss {measured['bfloat16'].merged_loss:.4f} against the adapter's {facts.adapter_loss:.4f}"
    assert facts.dtype_reason.startswith("auto: the narrowest type that preserves the training; bfloat16 " + lost)
    printed = capsys.readouterr().out
    assert f"dtype bfloat16 {lost}" in printed and "dtype float16 accepted: loss " in printed
    summary = (tmp_path / "summary.md").read_text()
    assert f"| tried bfloat16 | {lost}" in summary and "| tried float16 | accepted: loss " in summary
    assert "| dtype | float16 |" in summary and "Small changes by the adapter are lost" in summary
    assert "bfloat16 " + lost in ModelCard.load(chosen / "README.md").content


def test_float32_is_the_last_resort_and_is_served_as_such(
    base: Path, adapter: Path, tmp_path: Path, measured: dict
) -> None:
    facts = export(base, adapter, tmp_path, loss_tolerance=between(measured, "float32", "float16"))
    assert facts.dtype == "float32" and types_of(tmp_path) == {torch.float32}
    assert facts.loss_difference == measured["float32"].loss_difference
    assert "float32 needs twice the memory" in (tmp_path / "summary.md").read_text()
    assert "`vllm serve path/to/this/folder --dtype float32`" in (tmp_path / "merged" / "README.md").read_text()


def test_a_type_that_was_asked_for_is_never_exchanged(
    base: Path, adapter: Path, tmp_path: Path, measured: dict
) -> None:
    told = (
        r"dtype = 'bfloat16' does not preserve the training: changes of the adapter are lost in the rounding to bfloat16: .* the adapter has loss "
        r"\d+\.\d{4}, the merged model \d+\.\d{4} .* Set `merge_export: \{dtype: float32\}`"
    )
    with pytest.raises(UserError, match=told):
        export(base, adapter, tmp_path, dtype="bfloat16", loss_tolerance=between(measured, "float16", "bfloat16"))
    assert not (tmp_path / "merged").exists() and not (tmp_path / "merged.partial").exists()
    assert {facts.dtype_reason for facts in measured.values()} == {"requested"}


def test_float16_is_passed_over_where_a_weight_leaves_its_range(base: Path, adapter: Path, tmp_path: Path) -> None:
    def far(weight: torch.Tensor) -> None:
        weight[1, 0] = 100_352.0  # of a token that no row holds

    wide = changed(base, tmp_path / "wide", "model.embed_tokens.weight", far)
    facts = export(wide, adapter, tmp_path, loss_tolerance=1e-6)
    assert facts.dtype == "float32"
    told = "model.embed_tokens.weight reaches 100,352, and the maximum of float16 is 65,504"
    assert f"float16 rejected: {told}" in facts.dtype_reason
    for way in (merge.StreamingMerger, merge.InMemoryMerger):
        (tmp_path / way.__name__).mkdir()
        with pytest.raises(UserError, match=told):
            way(wide, adapter, False).write(tmp_path / way.__name__, torch.float16)
    with pytest.raises(UserError, match=rf"dtype = 'float16' .*{told}.* `merge_export: \{{dtype: float32\}}`"):
        export(wide, adapter, tmp_path, dtype="float16", **ANY)


def test_float16_is_passed_over_where_activations_leave_its_range(base: Path, adapter: Path, tmp_path: Path) -> None:
    wide = changed(base, tmp_path / "wide", "model.layers.0.mlp.up_proj.weight", lambda weight: weight.mul_(2e6))
    with pytest.raises(UserError, match=r"its activations reach [\d,]+, and the maximum of float16 is 65,504"):
        export(wide, adapter, tmp_path, dtype="float16", **ANY)


def test_the_largest_activation_is_found(base: Path, adapter: Path) -> None:
    rows = parity.parity_rows(adapter)
    answered = merge.create_merger(base, adapter, False).adapter_predictions(rows)
    assert float(answered.logits.abs().max()) <= answered.max_activation < 1000
    assert precision.float16_obstacle(answered.max_activation, "llama") == ""
    assert "activations reach nan" in precision.float16_obstacle(float("nan"), "llama")
    assert precision.float16_obstacle(1.0, "gemma2") == "vLLM does not run gemma2 in float16"


def test_the_architectures_that_vllm_refuses_in_float16() -> None:
    config = pytest.importorskip("vllm.config.model", reason="vLLM is not installed")
    assert set(precision.NOT_IN_FLOAT16) == set(config._FLOAT16_NOT_SUPPORTED_MODELS)


@pytest.mark.parametrize(
    ("asked", "stored", "order"),
    [
        ("auto", "bfloat16", ["bfloat16", "float16", "float32"]),
        ("auto", "float16", ["float16", "bfloat16", "float32"]),
        ("auto", "float32", ["bfloat16", "float16", "float32"]),
        ("float16", "bfloat16", ["float16"]),
    ],
)
def test_the_order_of_the_types(asked: str, stored: str, order: list[str]) -> None:
    found = precision.candidate_dtypes(asked, getattr(torch, stored))
    assert found == [getattr(torch, name) for name in order]
