import shutil
from pathlib import Path

import pytest
from kfp_api import serving
from submitting import OPEN

from llm_finetune.pipelines.compile import compile_pipeline
from llm_finetune.pipelines.options import ClusterOptions
from llm_finetune.pipelines.submit import connection, run


@pytest.fixture(scope="session")
def compiled_once(tmp_path_factory):
    """Compiles each set of options once: what differs between the tests is what happens to the file."""
    files: dict[str, Path] = {}

    def compile_once(path: Path, options: ClusterOptions) -> Path:
        key = options.model_dump_json()
        if key not in files:
            files[key] = compile_pipeline(tmp_path_factory.mktemp("compiled") / "finetune.yaml", options)
        shutil.copy(files[key], path)
        return path

    return compile_once


@pytest.fixture
def here(monkeypatch, tmp_path, compiled_once):
    """A machine on which nothing is set up for a cluster, and the client does not pause."""
    monkeypatch.setattr(run, "compile_pipeline", compiled_once)
    monkeypatch.setattr(connection, "PAUSE_SECONDS", 0.01)
    monkeypatch.setenv("HOME", str(tmp_path))  # no context of a real kfp client
    monkeypatch.setattr(connection, "KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "none"))  # a notebook mounts one


@pytest.fixture
def api(here):
    with serving() as api:
        api.story = [OPEN]
        yield api
