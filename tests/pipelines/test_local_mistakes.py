"""The mistakes that people make with the command: each ends with one message, and nothing is left half-written."""

import json
import os
import re
import shutil
import socket
import subprocess

import pytest
from local_user import recipe, run, user_folder
from tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return user_folder(tmp_path_factory.mktemp("user"))


def failing(place, tmp_path, *arguments, more: str = "") -> str:
    """Runs with a mistake and returns the message, after checking that it is one message and leaves nothing half-written."""
    result = run(
        "--workdir", tmp_path / "runs", "--recipe", recipe(tmp_path / "my.yaml", more=more), *arguments, cwd=place
    )
    assert result.returncode == 1, result.stdout
    assert "Traceback" not in result.stdout
    assert not list((tmp_path / "runs").rglob("*.partial"))
    message = re.search(r"^(?:error: |.+ failed: )(.*)", result.stdout, re.MULTILINE)
    assert message, result.stdout
    assert result.stdout.count(message[1]) == 1
    return result.stdout[message.start() :]


def test_a_file_that_is_no_jsonl_names_the_line(place, tmp_path):
    (tmp_path / "bad.jsonl").write_text((place / "rows.jsonl").read_text() + "not json at all\n")
    said = failing(place, tmp_path, "--dataset", tmp_path / "bad.jsonl", "--base-model", "model")
    assert said.startswith("Load Dataset failed: ")
    assert "line 41" in said
    assert re.search(r"^/\S+load-dataset\.log$", said, re.MULTILINE)


@pytest.mark.soak
def test_a_missing_column_names_the_nearest(place, tmp_path):
    said = failing(
        place, tmp_path, "--dataset", "rows.jsonl", "--base-model", "model", more="fields: {output_key: outptu}"
    )
    assert said.startswith("Filter & Clean failed: ")
    assert "'outptu'" in said
    assert "'output'" in said


@pytest.mark.soak
def test_an_empty_file_says_so(place, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    said = failing(place, tmp_path, "--dataset", tmp_path / "empty.jsonl", "--base-model", "model")
    assert "empty" in said


@pytest.mark.soak
def test_a_model_folder_without_weights_says_so(place, tmp_path):
    tiny_tokenizer(tmp_path / "bare")
    shutil.copy(place / "model" / "config.json", tmp_path / "bare")
    said = failing(place, tmp_path, "--dataset", "rows.jsonl", "--base-model", tmp_path / "bare")
    assert said.startswith("Load Base Model failed: ")
    assert "safetensors" in said


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        (["--dataset", "rows.jsonl"], "evaluate: {max_sample: 3}", "unknown setting 'recipe.evaluate.max_sample'; did you mean 'max_samples'?"),
        (["--dataset", "rows.jsonl", "--set", "epochs=3"], "", "the pipeline has no parameter 'epochs'; did you mean 'num_epochs'?"),
        (["--dataset", "nothing.jsonl"], "", "no dataset at nothing.jsonl"),
        (["--dataset", "rows.jsonl", "--port", "PORT"], "", "port PORT on this machine is in use: process "),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_ends_before_anything_runs(place, tmp_path, arguments, more, message):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        said = failing(
            place, tmp_path, "--base-model", "model", *(a.replace("PORT", port) for a in arguments), more=more
        )
    assert message.replace("PORT", port) in said
    assert not list((tmp_path / "runs").glob("20*"))


def test_a_base_model_that_is_not_there_ends_at_once(place, tmp_path):
    assert "no base model folder at ./none" in failing(
        place, tmp_path, "--dataset", "rows.jsonl", "--base-model", "./none"
    )


@pytest.mark.soak
@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system can be mounted only by root")
def test_a_full_disk_is_told_in_one_message(place, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        (tmp_path / "big.jsonl").write_text("".join(
            json.dumps({"instruction": os.urandom(300).hex(), "input": "", "output": str(i)}) + "\n" for i in range(3000)
        ))  # fmt: skip
        result = run("--dataset", tmp_path / "big.jsonl", "--base-model", "model", "--recipe", recipe(tmp_path / "my.yaml"),
                     "--workdir", disk / "runs", cwd=place)  # fmt: skip
        assert result.returncode == 1, result.stdout
        assert "no space left" in result.stdout.lower()
        assert "Traceback" not in result.stdout
        assert not list(disk.rglob("*.partial"))
    finally:
        subprocess.run(["umount", disk], check=True)
