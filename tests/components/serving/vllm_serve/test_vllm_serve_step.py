import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kfp import dsl

from llm_finetune.components.serving.vllm_serve import component, report, step
from llm_finetune.components.serving.vllm_serve.local import commands, model_folder
from llm_finetune.components.shared.card_logs import read_outcome
from llm_finetune.components.shared.engine import engines
from llm_finetune.components.shared.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like a model; no weights are read here."""
    model = tmp_path / "model"
    model.mkdir()
    config = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512, "dtype": "bfloat16"}))
    for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja"):
        (model / name).write_text("x")
    return model


def test_component_and_settings_agree() -> None:
    ours = {"merged_model", "eval_report", "deployment_info", "deployment_page", "settings", "package_version"}
    parameters = inspect.signature(component.vllm_serve.python_func).parameters
    defaults = {name: p.default for name, p in parameters.items() if name not in ours}
    assert defaults == step.Settings().model_dump()
    documented = component.vllm_serve.python_func.__doc__
    assert all(f"        {name}: " in documented for name in parameters)


def test_model_facts_size_the_cache(folder: Path) -> None:
    facts = model_folder.read(folder)
    assert (facts.context_length, facts.dtype) == (512, "bfloat16")
    # 2 (key, value) x 2 layers x 2 heads x 16 wide.
    assert facts.cache_values_per_token == 128
    assert facts.cache_bytes(10, "float32") == 5120


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is not valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "not a JSON object"),
        (lambda f: (f / "model.safetensors").unlink(), "no \\*.safetensors weights.*save_format"),
        (lambda f: (f / "model.safetensors").rename(f / "model.pt"), "only model.pt, which can execute code"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}'
            ),
            "of its index: model-2.safetensors",
        ),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda f: (f / "chat_template.jinja").unlink(), "no chat template"),
    ],
)
def test_folder_that_cannot_be_served_is_refused(folder: Path, tmp_path: Path, spoil, message: str) -> None:
    spoil(folder)
    with pytest.raises(UserError, match=message):
        step.vllm_serve(folder, tmp_path / "info", tmp_path / "page", step.Settings(target="local", port=0))
    assert not (tmp_path / "info").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"deployment_name": "My_Model"}, "deployment_name = 'My_Model'"),
        ({"gpu_count": "one"}, "gpu_count"),
        ({"target": "cloud"}, "target = 'cloud'"),
        ({"golden_prompts": [" "]}, "a prompt is empty"),
        ({"golden_prompts": [[{"role": "assistant", "content": "hi"}]]}, "ends with role user"),
        ({"settings": {"max_batch_token": 1}}, "did you mean 'max_batch_tokens'"),
    ],
)
def test_impossible_settings_are_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        step.Settings.of(change)


def test_manifest_target_gives_yaml_and_deploys_nothing(folder: Path, tmp_path: Path) -> None:
    model = dsl.Model(uri=str(folder), metadata={"content_hash": "sha256:1"})
    info, page = dsl.Artifact(uri=str(tmp_path / "info")), dsl.Markdown(uri=str(tmp_path / "page"))
    settings = step.Settings(target="manifest", namespace="team")
    with pytest.raises(SystemExit):
        component.vllm_serve.python_func(model, dsl.Metrics(uri=""), info, page, target="manifest")
    facts = step.vllm_serve(folder, info.path, page.path, settings, "s3://b/run/model", model.metadata)
    runtime, service = yaml.safe_load_all(facts["manifests"])
    assert (runtime["kind"], service["kind"]) == ("ServingRuntime", "InferenceService")
    assert service["spec"]["predictor"]["model"]["storageUri"] == "s3://b/run/model/"
    assert service["spec"]["predictor"]["annotations"] == {"llm-finetune/revision": facts["revision"]}
    assert facts["base_url"] == "http://llm-finetune-v1-predictor.team.svc.cluster.local/v1"
    assert facts["answers"] == [] and json.loads(Path(info.path).read_text()) == facts
    again = step.vllm_serve(folder, tmp_path / "b", tmp_path / "c", settings, "s3://b/run/model", model.metadata)
    assert again == facts


def test_the_rows_that_are_asked_do_not_reach_the_metadata_store(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "Where does Ada live?"}], "reference": "12 Elm St"}]
    (tmp_path / "report").write_text(json.dumps({"questions": rows}))
    model = dsl.Model(uri="s3://b/run/model", metadata={"content_hash": "sha256:1"})
    report = dsl.Metrics(uri=str(tmp_path / "report"), metadata={"content_hash": "sha256:2"})
    info, page = dsl.Artifact(uri=str(tmp_path / "info")), dsl.Markdown(uri=str(tmp_path / "page"))
    component.vllm_serve.python_func(model, report, info, page, target="manifest")
    assert "Where does Ada live?" in json.loads(Path(info.path).read_text())["example_curl"]
    assert "Where does Ada live?" in Path(page.path).read_text()
    assert "Ada" not in json.dumps(info.metadata) and info.metadata["asked"] == "validation rows"
    assert info.metadata["inputs"] == {"merged_model": "sha256:1", "eval_report": "sha256:2"}


def stored_in(folder: Path, dtype: str) -> Path:
    """Says another type in the model's config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": dtype}))
    return folder


@pytest.mark.parametrize(
    ("stored", "asked", "flag"),
    [
        ("float32", "auto", ["--dtype=float32"]),
        ("float32", "bfloat16", ["--dtype=bfloat16"]),
        ("bfloat16", "auto", []),
        ("float16", "auto", []),
    ],
)
def test_weights_stored_in_float32_are_not_narrowed_on_a_cluster(
    folder: Path, tmp_path: Path, stored: str, asked: str, flag: list[str]
) -> None:
    settings = step.Settings(target="manifest", dtype=asked)
    info, page, uri = tmp_path / "info", tmp_path / "page", "gs://b/m"
    for path in (stored_in(folder, stored), tmp_path / "elsewhere"):
        facts = step.vllm_serve(path, info, page, settings, uri, {"dtype": stored, "content_hash": "sha256:0"})
        service = list(yaml.safe_load_all(facts["manifests"]))[1]
        arguments = service["spec"]["predictor"]["model"]["args"]
        assert [argument for argument in arguments if argument.startswith("--dtype")] == flag


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize(
    ("stored", "on_gpu", "on_cpu"),
    [("float32", "float32", "float32"), ("float16", "auto", "float32"), ("bfloat16", "auto", "bfloat16")],
)
def test_weights_are_not_narrowed_on_this_machine(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str, on_gpu: str, on_cpu: str, gpu: bool
) -> None:
    known = {"/dev/nvidiactl": tmp_path if gpu else tmp_path / "none"}
    monkeypatch.setattr(commands, "Path", lambda path: known[path])
    monkeypatch.setattr(commands, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr(engines, "vllm_is_for_cpu", lambda: False)
    model = model_folder.read(stored_in(folder, stored))
    launch = commands.vllm(model, "m", 1, tmp_path, 64, 0, "auto")
    assert launch.dtype == (on_gpu if gpu else on_cpu)
    assert f"--dtype={launch.dtype}" in launch.command


def test_card_records_what_it_has_done_for_the_report(folder: Path, tmp_path: Path, capsys) -> None:
    model = dsl.Model(uri=str(folder), metadata={"content_hash": "sha256:1"})
    (tmp_path / "report").write_text("{}")
    report = dsl.Metrics(uri=str(tmp_path / "report"))
    info, page = dsl.Artifact(uri=str(tmp_path / "info")), dsl.Markdown(uri=str(tmp_path / "page"))
    component.vllm_serve.python_func(model, report, info, page, target="manifest", storage_uri="s3://models/address")
    assert read_outcome(capsys.readouterr().out, "vllm_serve") == {
        "by": "vllm_serve",
        "target": "manifest",
        "deployment_name": "llm-finetune-v1",
        "base_url": "http://llm-finetune-v1-predictor.default.svc.cluster.local/v1",
    }


def test_copy_of_the_model_is_served_from_where_it_lies(folder: Path, tmp_path: Path) -> None:
    settings = step.Settings(target="manifest", storage_uri="s3://models/address")
    # The artifact lies in a store of its own; how to reach that one says nothing about the copy.
    session = {"Params": {"endpoint": "minio.kubeflow:9000", "secretName": "minio"}}
    facts = step.vllm_serve(
        folder, tmp_path / "a", tmp_path / "b", settings, "minio://runs/1", {"store_session_info": json.dumps(session)}
    )
    _, service = yaml.safe_load_all(facts["manifests"])
    assert service["spec"]["predictor"]["model"]["storageUri"] == "s3://models/address/"
    assert "minio" not in facts["manifests"]
    with pytest.raises(ValueError, match="storage_uri"):
        step.Settings(storage_uri="/mnt/models/address")


def test_curl_is_safe_to_paste(tmp_path: Path) -> None:
    prompt = 'it\'s $HOME `x` "q" \\ \n é'
    line = report.example_curl("http://h/v1", "m", [{"role": "user", "content": prompt}], 8)
    echoed = subprocess.run(
        ["bash", "-c", f'curl() {{ printf "%s\\0" "$@"; }}; {line}'], capture_output=True, text=True, check=True
    )
    arguments = echoed.stdout.split("\0")
    assert arguments[:4] == ["http://h/v1/chat/completions", "-H", "Content-Type: application/json", "-d"]
    assert json.loads(arguments[4])["messages"][0]["content"] == prompt


def test_page_fences_hold_what_the_model_says(tmp_path: Path) -> None:
    answer = {"prompt": "p", "text": "```\n# not a title", "finish_reason": "stop", "first_token_seconds": 0.1}
    info = {"deployment_name": "d", "target": "local", "answers": [answer | {"seconds": 0.2, "tokens": 3}]}
    assert "````text\n```\n# not a title\n````" in report.page(info)


def test_cache_that_cannot_hold_one_request_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = model_folder.read(folder)
    monkeypatch.setattr(engines, "free_memory", lambda: 4 * 64 * engines.MIB)
    with pytest.raises(UserError, match="Set max_model_len to at most 130816"):
        commands._kv_cache(facts, "float32", 1_000_000)
    assert commands._kv_cache(facts, "float32", 0) == (512, 64 * engines.MIB)


def test_model_longer_than_memory_is_cut_and_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = model_folder.ModelFolder(folder, 1_000_000, 128, "float32")
    monkeypatch.setattr(engines, "free_memory", lambda: 4 * 64 * engines.MIB)
    length, cache = commands._kv_cache(facts, "float32", 0)
    assert (length, cache) == (130816, 64 * engines.MIB)
    assert "max_model_len is 130816 instead of the model's 1000000" in capsys.readouterr().out


def test_card_needs_no_machine_learning_library() -> None:
    code = (
        "import sys; from llm_finetune.components.serving.vllm_serve import step\n"
        "print([m for m in ('torch', 'transformers', 'vllm', 'kfp', 'kubernetes') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
