"""Load Base Model from folders: what it stores, what it counts, and what it refuses."""

import inspect
import json
import os
import shutil
from pathlib import Path

import pytest
from kfp import dsl
from load_model_folder import fixture_original, load  # noqa: F401
from tiny import tiny_model

from llm_finetune.components.model.load_model import component, disk, step
from llm_finetune.components.model.load_model.headers import Tensor, count_parameters
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import content_hash
from llm_finetune.components.shared.modeling import base_model
from llm_finetune.components.shared.modeling.base_model import resolve


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "model")


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_settings_are_the_component_s_parameters() -> None:
    signature = inspect.signature(component.load_model.python_func).parameters
    defaults = {name: signature[name].default for name in step.Settings.model_fields}
    assert defaults == step.Settings().model_dump()


def test_a_folder_becomes_a_model_folder_with_its_facts(model: Path, tmp_path: Path) -> None:
    facts = load(tmp_path, model)
    stored = tmp_path / "model_config"
    assert sorted(file.name for file in stored.iterdir()) == [
        "LICENSE", "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert facts.total_parameters == 125248
    assert (facts.architecture, facts.dtype, facts.context_length) == ("LlamaForCausalLM", "bfloat16", 1024)
    assert (facts.licence, facts.chat_template, facts.load_in_4bit, facts.store) == ("apache-2.0", True, True, "copy")
    assert facts.model_name == str(model)
    assert facts.size_bytes == sum(file.stat().st_size for file in stored.iterdir())
    assert resolve(stored) == (str(stored), "")


def test_the_summary_shows_what_the_card_promises(model: Path, tmp_path: Path) -> None:
    load(tmp_path, model, load_in_4bit=False)
    summary = (tmp_path / "summary.md").read_text()
    for row in (
        "architecture | LlamaForCausalLM",
        "total\\_parameters | 125,248",
        "load\\_in\\_4bit | no",
        "context length | 1,024",
        "dtype | bfloat16",
        "licence | apache-2.0",
        "chat template | yes",
    ):
        assert f"| {row} |" in summary


def test_weights_are_linked_and_the_user_s_folder_stays_as_it_is(model: Path, tmp_path: Path) -> None:
    before = content_hash(model)
    load(tmp_path, model)
    stored = tmp_path / "model_config"
    assert (stored / "model.safetensors").stat().st_ino == (model / "model.safetensors").stat().st_ino
    (stored / "config.json").write_text("{}")  # small files are copies
    shutil.rmtree(stored)
    assert content_hash(model) == before


def test_without_links_weights_are_copied(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    load(tmp_path, model)
    copied = tmp_path / "model_config" / "model.safetensors"
    assert copied.read_bytes() == (model / "model.safetensors").read_bytes()
    assert copied.stat().st_nlink == 1


def test_a_disk_too_small_is_told_before_copying(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_link", lambda *paths: False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(UserError, match=r"no space left .* needs 0.00 GB .* has 0.00 GB.*reference"):
        load(tmp_path, model)
    assert not (tmp_path / "model_config").exists()


def test_a_folder_is_pinned_by_its_content(model: Path, tmp_path: Path) -> None:
    revision = load(tmp_path, model).revision
    assert revision.startswith("sha256:")
    assert load(tmp_path, model, revision=revision).revision == revision
    elsewhere = shutil.copytree(model, tmp_path / "elsewhere")
    assert load(tmp_path, elsewhere).revision == revision
    edit_config(elsewhere, rope_theta=1.0)
    with pytest.raises(UserError, match=r"its files have changed"):
        load(tmp_path, elsewhere, revision=revision)


def test_a_reference_to_a_folder_is_followed_and_checked(model: Path, tmp_path: Path) -> None:
    facts = load(tmp_path, model, store="reference")
    stored = tmp_path / "model_config"
    assert not (stored / "model.safetensors").exists()
    assert (stored / "tokenizer.json").exists()
    assert resolve(stored) == (str(model), facts.revision)
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-1] + b"\x01")
    with pytest.raises(UserError, match="have changed"):
        resolve(stored)
    (model / "model.safetensors").unlink()
    with pytest.raises(UserError, match="is missing"):
        resolve(stored)


def test_later_cards_read_the_weights_of_a_reference_only_where_they_look_changed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after the folder came back with other times, as from another mount; never where a small file differs."""
    facts = load(tmp_path, model, store="reference")
    stored, hashed = tmp_path / "model_config", []
    hash_files = base_model.files_revision
    monkeypatch.setattr(base_model, "files_revision", lambda *args: hashed.append(args) or hash_files(*args))
    assert resolve(stored) == (str(model), facts.revision)
    assert not hashed
    os.utime(model / "model.safetensors", (1, 1))
    assert resolve(stored) == (str(model), facts.revision)
    assert len(hashed) == 1
    file = model / "config.json"
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_text(file.read_text().replace('"hidden_size": 64', '"hidden_size": 65'))
    os.utime(file, ns=times)
    with pytest.raises(UserError, match="have changed"):
        resolve(stored)


def test_the_content_hash_follows_the_files(model: Path, tmp_path: Path) -> None:
    first = load(tmp_path, model)
    assert load(tmp_path, model, store="reference").content_hash == first.content_hash
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert load(tmp_path, model).content_hash != first.content_hash


def test_a_sharded_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    plain = tiny_model(tmp_path / "plain")
    sharded = shutil.copytree(plain, tmp_path / "sharded", ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForCausalLM.from_pretrained(plain).save_pretrained(sharded, max_shard_size="200KB")
    facts = load(tmp_path, sharded)
    assert len(list((tmp_path / "model_config").glob("*.safetensors"))) > 2
    assert facts.total_parameters == load(tmp_path, plain).total_parameters
    next(sharded.glob("model-00002*")).unlink()
    with pytest.raises(UserError, match=r"incomplete: .* names model-00002"):
        load(tmp_path, sharded)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_count_once(tmp_path: Path, tied: bool) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_model(tmp_path / "model", tied=tied)
    assert load(tmp_path, folder).total_parameters == AutoModelForCausalLM.from_pretrained(folder).num_parameters()


def test_a_file_that_stores_tied_weights_twice_and_old_buffers() -> None:
    tensors = [
        Tensor("model.embed_tokens.weight", "BF16", (10, 4)),
        Tensor("lm_head.weight", "BF16", (10, 4)),
        Tensor("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", (2,)),
    ]
    assert count_parameters(tensors, tied=True) == 40
    assert count_parameters(tensors, tied=False) == 80


def test_code_in_the_repository_of_a_model_that_transformers_has_is_passed_over(model: Path, tmp_path: Path) -> None:
    edit_config(model, auto_map={"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"})
    assert load(tmp_path, model).architecture == "LlamaForCausalLM"
    assert not list((tmp_path / "model_config").glob("*.py"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM, not a causal language model"),
        ({"architectures": None}, "a model without an architecture"),
        ({"auto_map": {"AutoModelForCausalLM": "x.Y"}, "model_type": "internlm2"}, "never executed here"),
        ({"auto_map": {"AutoModelForCausalLM": "x.Y"}, "architectures": ["OurForCausalLM"]}, "never executed here"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"already quantised \(gptq\)"),
    ],
)
def test_models_that_cannot_be_tuned(model: Path, tmp_path: Path, changes: dict, message: str) -> None:
    edit_config(model, **changes)
    with pytest.raises(UserError, match=message):
        load(tmp_path, model)
    assert not (tmp_path / "model_config").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "only as model.bin.*pickle",
        ),
        (lambda folder: [(folder / "model.safetensors").unlink(), (folder / "model.bin").unlink()], "has no weights"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
        (lambda folder: [file.unlink() for file in folder.glob("tokenizer*")], "no tokenizer"),
        (lambda folder: os.truncate(folder / "model.safetensors", 9000), "not a complete safetensors file"),
        (lambda folder: os.truncate(folder / "model.safetensors", 3), "not a complete safetensors file"),
        (lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"), "is an adapter"),
    ],
)
def test_damaged_folders(model: Path, tmp_path: Path, damage: object, message: str) -> None:
    damage(model)
    with pytest.raises(UserError, match=message):
        load(tmp_path, model)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/model", "folder does not exist"),
        ("./nowhere", "folder does not exist"),
        ("s3://bucket/model", "is a URL"),
        ("not a name", "neither a folder nor a Hub id"),
    ],
)
def test_names_that_lead_nowhere(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, name)


def test_the_card_writes_metadata_and_explains_mistakes(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifacts = {
        "model_config": dsl.Model(uri=str(tmp_path / "out")),
        "model_summary": dsl.Markdown(uri=str(tmp_path / "summary.md")),
    }
    component.load_model.python_func(**artifacts, model_name=str(model), settings={"load_in_4bit": False})
    metadata = artifacts["model_config"].metadata
    assert metadata["load_in_4bit"] is False
    assert metadata["total_parameters"] == 125248
    assert metadata["inputs"] == {}
    json.dumps(metadata, allow_nan=False)
    with pytest.raises(SystemExit) as ended:
        component.load_model.python_func(**artifacts, model_name="/nowhere")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: model_name = '/nowhere': the folder does not exist\n"
