"""Load Base Model from a Hub: what is downloaded, what the cache holds, and what is refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import COMMIT, FakeHub, serving
from huggingface_hub import constants
from load_model_folder import fixture_original, load  # noqa: F401

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.base_model import DownloadProgress, commit_of, resolve


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, original: Path) -> FakeHub:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serving() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        running.repos["org/tiny"] = original
        yield running


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
    with pytest.raises(
        UserError, match=r"does not contain all files of org/tiny .* mount the same volume here; if it was emp"
    ):
        resolve(tmp_path / "model_config")


def test_the_commit_that_a_name_means_now(hub: FakeHub, original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commit_of("org/tiny", "") == commit_of("org/tiny", "main") == COMMIT
    assert commit_of(str(original), "") == commit_of("/mnt/model-cache/not-mounted-here", "") == ""
    with pytest.raises(UserError, match="there is no model 'org/none'"):
        commit_of("org/none", "")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert commit_of("org/tiny", "") == ""


def test_the_cache_serves_when_the_hub_is_gone(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(tmp_path, "org/tiny")
    sent = hub.sent
    hub.broken = 503
    assert load(tmp_path, "org/tiny") == first
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert load(tmp_path, "org/tiny") == first
    assert (hub.sent, hub.requests) == (sent, [])
    with pytest.raises(
        UserError, match=r"org/other is unreachable and the cache does not contain all files of org/other"
    ):
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
    with DownloadProgress(desc="Reconstructing", total=0, unit="B", mininterval=0) as bar:
        bar.total = 40_000_000
        bar.update(10_000_000)
        bar.update(30_000_000)
    written = capsys.readouterr()
    lines = written.out.splitlines()
    assert lines[0].startswith("progress: download 10/40 MB")
    assert lines[-1].startswith("progress: download 40/40 MB")
    assert written.err == ""


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
