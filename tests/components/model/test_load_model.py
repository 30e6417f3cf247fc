"""Load Base Model: from folders and from a Hub, what it counts, and what it refuses."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.numpy
from fake_hub import COMMIT, FakeHub, serving
from huggingface_hub import constants
from kfp import dsl
from tiny import tiny_model

from llm_finetune.components.model.load_model import component, disk, step
from llm_finetune.components.model.load_model.headers import Tensor, count_parameters
from llm_finetune.components.shared.base_model import DownloadLines, resolve
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import content_hash


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_model(tmp_path_factory.mktemp("original") / "model", dtype="bfloat16")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    (folder / "LICENSE").write_text("Apache License")
    (folder / "model.bin").write_bytes(b"pickle")  # beside safetensors: passed over
    return folder


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "model")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, original: Path) -> FakeHub:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serving() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        running.repos["org/tiny"] = original
        yield running


def load(tmp_path: Path, name: object, **settings: object) -> step.ModelFacts:
    chosen = step.Settings(model_name=str(name), cache_dir=str(tmp_path / "cache"), **settings)
    return step.load_model(tmp_path / "model_config", tmp_path / "summary.md", chosen)


def parameters(folder: Path) -> int:
    return sum(value.size for value in safetensors.numpy.load_file(folder / "model.safetensors").values())


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
    with pytest.raises(UserError, match="is gone"):
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
    with pytest.raises(UserError, match=r"not whole: .* names model-00002"):
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM, not a causal language model"),
        ({"architectures": None}, "a model without an architecture"),
        ({"auto_map": {"AutoModelForCausalLM": "x.Y"}}, "never runs such code"),
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
        (lambda folder: [(folder / "model.safetensors").unlink(), (folder / "model.bin").unlink()], "holds no weights"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
        (lambda folder: [file.unlink() for file in folder.glob("tokenizer*")], "no tokenizer"),
        (lambda folder: os.truncate(folder / "model.safetensors", 9000), "not a whole safetensors file"),
        (lambda folder: os.truncate(folder / "model.safetensors", 3), "not a whole safetensors file"),
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
        ("/no/such/model", "no such folder"),
        ("./nowhere", "no such folder"),
        ("s3://bucket/model", "is a URL"),
        ("not a name", "neither a folder nor a Hub id"),
    ],
)
def test_names_that_lead_nowhere(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, name)


def test_from_the_hub(hub: FakeHub, original: Path, tmp_path: Path) -> None:
    facts = load(tmp_path, "org/tiny", revision="main")
    assert (facts.model_name, facts.revision, facts.licence) == ("org/tiny", COMMIT, "apache-2.0")
    assert facts.total_parameters == 125248
    stored = tmp_path / "model_config"
    assert (stored / "model.safetensors").read_bytes() == (original / "model.safetensors").read_bytes()
    assert not (stored / "model.safetensors").is_symlink()
    assert not any("model.bin" in request for request in hub.requests)


def test_a_reference_to_the_hub_leaves_the_weights_in_the_cache_and_is_resolved_from_it_alone(
    hub: FakeHub, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = load(tmp_path, "org/tiny", store="reference")
    assert (facts.total_parameters, facts.dtype) == (125248, "bfloat16")
    assert facts.content_hash == load(tmp_path / "copy", "org/tiny").content_hash
    assert not list((tmp_path / "model_config").glob("*.safetensors"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    folder, revision = resolve(tmp_path / "model_config")
    assert (revision, hub.requests) == (COMMIT, [])
    assert (Path(folder) / "model.safetensors").read_bytes() == (original / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UserError, match=r"does not hold all of org/tiny .* mount the same volume here; if it was emp"):
        resolve(tmp_path / "model_config")


def test_the_cache_serves_when_the_hub_is_gone(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(tmp_path, "org/tiny")
    sent = hub.sent
    hub.broken = 503
    assert load(tmp_path, "org/tiny") == first
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert load(tmp_path, "org/tiny") == first
    assert (hub.sent, hub.requests) == (sent, [])
    with pytest.raises(UserError, match=r"org/other is out of reach and the cache does not hold all of org/other"):
        load(tmp_path, "org/other")


def test_gated_models_need_a_token_that_is_let_in(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated.add("org/tiny")
    hub.tokens.add("hf_right")
    with pytest.raises(UserError, match=r"org/tiny is gated, and no token was sent \(set HF_TOKEN"):
        load(tmp_path, "org/tiny")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match=r"token in HF_TOKEN has no access.*Accept its terms") as refused:
        load(tmp_path, "org/tiny")
    assert "hf_wrong" not in str(refused.value)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    load(tmp_path, "org/tiny")
    written = [file.read_bytes() for file in (tmp_path / "model_config").iterdir()]
    assert not any(b"hf_right" in content for content in written)


def test_what_is_missing_on_the_hub(hub: FakeHub, original: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model 'org/none' at http"):
        load(tmp_path, "org/none")
    with pytest.raises(UserError, match=r"org/tiny has no revision 'v9'"):
        load(tmp_path, "org/tiny", revision="v9")
    hub.repos["org/pickled"] = tmp_path / "pickled"
    shutil.copytree(original, tmp_path / "pickled", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(UserError, match=r"org/pickled has its weights only as model.bin"):
        load(tmp_path, "org/pickled")


def test_a_download_that_does_not_fit_is_not_begun(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(UserError, match="no space left on the device: cache_dir"):
        load(tmp_path, "org/tiny")
    assert not any((tmp_path / "cache").rglob("model.safetensors"))


def test_a_volume_that_cannot_be_written_to_is_told_before_the_download(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    with pytest.raises(UserError, match=r"cache_dir = '.*cache' cannot be written to .* by user \d+, group \d+"):
        load(tmp_path, "org/tiny")
    assert hub.requests == []


def test_a_download_reports_its_progress_as_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with DownloadLines(desc="Reconstructing", total=0, unit="B", mininterval=0) as bar:
        bar.total = 40_000_000
        bar.update(10_000_000)
        bar.update(30_000_000)
    written = capsys.readouterr()
    lines = written.out.splitlines()
    assert lines[0].startswith("progress: download 10/40 MB")
    assert lines[-1].startswith("progress: download 40/40 MB")
    assert written.err == ""


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
    assert capsys.readouterr().err == "error: model_name = '/nowhere': there is no such folder\n"


def test_no_torch_and_the_endpoint_of_the_environment(original: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from llm_finetune.components.model.load_model import step\n"
        "settings = step.Settings(model_name='org/tiny', cache_dir=sys.argv[1] + '/cache')\n"
        "facts = step.load_model(sys.argv[1] + '/out', sys.argv[1] + '/summary.md', settings)\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "print(facts.total_parameters)"
    )
    with serving() as hub:
        hub.repos["org/tiny"] = original
        result = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "125248"
    assert result.stdout.splitlines()[0] == "downloading 1 weight files of org/tiny, 0.00 GB"
    assert result.stderr.strip() == ""
