"""The command as a new user runs it: the whole pipeline on a tiny model, and the mistakes that people make."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from tiny import tiny_model, tiny_tokenizer

COMMAND = str(Path(sys.executable).parent / "llm-finetune")
RUN = ["--dataset", "rows.jsonl", "--base-model", "model", "--resume", "--recipe"]
RECIPE = """
parameters:
  serve_target: local
  num_epochs: 1
  max_length: 256
  learning_rate: 1.0e-3
  template: "Do \\"{{instruction}}\\":\\n{{input}}\\n\\n{{output}}"
  gate_rules: {gate}
finetune_lora: {{evaluate_first: false, dtype: float32}}
evaluate: {{generate_samples: 2, max_new_tokens: 4}}
vllm_serve: {{port: 0, max_model_len: 256, max_batch_tokens: 256, answer_tokens: 8}}
"""


def rows(path: Path, count: int = 40) -> Path:
    path.write_text("".join(
        json.dumps({"instruction": "Repeat the number", "input": f"number {i}", "output": f"this is {i}"}) + "\n"
        for i in range(count)
    ))  # fmt: skip
    return path


def run(*arguments, cwd: Path, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([COMMAND, "run", *map(str, arguments)], cwd=cwd, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env=environment, timeout=400, **options)  # fmt: skip


def recipe(path: Path, gate: str = "samples_used > 0", more: str = "") -> Path:
    path.write_text(RECIPE.format(gate=gate) + more)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    tiny_model(folder / "model", layers=1, head=32)
    rows(folder / "rows.jsonl")
    return folder


@dataclass
class Served:
    """A run that was served until Ctrl-C, and what the server said to the command that the run had printed."""

    returncode: int
    stdout: str
    answer: dict


@pytest.fixture(scope="module")
def whole(place):
    started = subprocess.Popen(
        [COMMAND, "run", *RUN, recipe(place / "my.yaml")],
        cwd=place, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "COLUMNS": "160", "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert started.stdout
    try:
        lines = []
        for line in started.stdout:
            lines.append(line)
            if line.startswith("The server runs until Ctrl-C"):
                break
        output = "".join(lines)
        curl = re.search(r"^curl .*(?:\n.+)*?\n\n", output, re.MULTILINE)
        assert curl, output
        answer = json.loads(subprocess.run(["bash", "-c", curl[0].strip()], check=True, capture_output=True).stdout)
    finally:
        started.send_signal(signal.SIGINT)
        rest, _ = started.communicate(timeout=60)
    return Served(started.returncode, output + rest, answer)


def test_the_whole_pipeline_runs_from_rows_to_a_deployment(whole, place):
    assert whole.returncode == 0, whole.stdout
    ended = re.findall(r"^✓ (.+?)\s+\d+:\d\d$", whole.stdout, re.MULTILINE)
    assert len(ended) == 16
    assert {"Data Report", "Merge & Export", "vLLM Serve"} < set(ended) and ended[-1] == "Report"
    assert re.search(r"loss per completion token .* \d\.\d+", whole.stdout)
    pages = re.findall(r"file://(\S+)", whole.stdout)
    assert len(pages) >= 12
    assert all(Path(page).exists() for page in pages)
    logs = sorted(path.name for path in next((place / "runs").glob("20*")).glob("logs/*.log"))
    assert sum("finetune-lora" in name for name in logs) == 1
    assert re.search(r"^answered: .+", whole.stdout, re.MULTILINE)
    assert whole.answer["choices"][0]["message"]["role"] == "assistant"
    assert whole.stdout.strip().endswith("stopping the server")
    assert processes_of(place / "runs") == []


def test_a_second_run_takes_from_the_cache_what_has_not_changed(whole, place):
    plan = recipe(place / "manifest.yaml").read_text().replace("serve_target: local", "serve_target: manifest")
    (place / "manifest.yaml").write_text(plan.replace("port: 0", "storage_uri: pvc://models/tiny"))
    again = run(*RUN, place / "manifest.yaml", cwd=place)
    assert again.returncode == 0, again.stdout
    assert len(re.findall(r"^= .+cached$", again.stdout, re.MULTILINE)) == 11, again.stdout
    assert re.findall(r"^✓ (.+?)\s+\d+:\d\d$", again.stdout, re.MULTILINE) == [
        "Check Recipe", "Pin Sources", "Quality Gate", "vLLM Serve", "Report"
    ]  # fmt: skip


@pytest.mark.soak
def test_a_merged_model_is_served_again_and_stopped_by_hand(whole, place):
    merged = next((place / "runs").glob("20*/artifacts/*/merge-export/merged_model"))
    served = subprocess.run([COMMAND, "serve", merged, "--name", "again", "--port", "0", "--no-keep", "--workdir", "by-hand"],
                            cwd=place, capture_output=True, text=True, timeout=200)  # fmt: skip
    assert served.returncode == 0, served.stderr
    port = re.search(r" at http://127\.0\.0\.1:(\d+)/v1", served.stdout)[1]
    listed = subprocess.run(
        ["curl", "-s", f"http://127.0.0.1:{port}/v1/models"], capture_output=True, text=True, check=True
    )
    assert '"again"' in listed.stdout
    stopped = subprocess.run(
        [COMMAND, "stop", "--workdir", "by-hand"], cwd=place, capture_output=True, text=True, check=True
    )
    assert stopped.stdout.strip() == "1 server stopped"
    assert processes_of(merged) == []
    again = subprocess.run(
        [COMMAND, "stop", "--workdir", "by-hand"], cwd=place, capture_output=True, text=True, check=True
    )
    assert again.stdout.strip() == "0 servers stopped"


def test_a_closed_gate_deploys_nothing_and_says_why(whole, place):
    closed = run("--dataset", "rows.jsonl", "--base-model", "model", "--recipe", recipe(place / "closed.yaml", "tuned_loss < 0"),
                 "--resume", cwd=place)  # fmt: skip
    assert closed.returncode == 3, closed.stdout
    assert "Not deployed, because tuned_loss < 0 does not hold: tuned_loss = " in closed.stdout
    assert "Merge & Export" not in re.findall(r"^[✓=] (.+?)\s+", closed.stdout, re.MULTILINE)


def test_a_model_card_repeats_the_run(whole, place):
    (adapter,) = {path.name: path for path in (place / "runs").glob("20*/artifacts/**/ft_result")}.values()
    card = next((place / "runs").glob("20*/artifacts/**/merged_model/README.md"))
    never = ["--set", "gate_rules=samples_used < 0", "--workdir", "again"]
    again = run("--from-card", card, *never, "--no-keep", cwd=place)
    assert again.returncode == 3, again.stdout
    (repeated,) = (place / "again").glob("20*/artifacts/**/ft_result")
    for name in ("adapter_model.safetensors", "tokenizer.json"):
        assert (repeated / name).read_bytes() == (adapter / name).read_bytes()


def test_changed_rows_are_read_anew_and_the_model_is_not(whole, place):
    shutil.copy(place / "rows.jsonl", place / "copy.jsonl")
    rows(place / "rows.jsonl", 41)
    try:
        stopped = run("--dataset", "rows.jsonl", "--base-model", "model", "--recipe", recipe(place / "bad.yaml", more="filter_clean: {min_chars: 4000}"),
                      "--resume", cwd=place)  # fmt: skip
    finally:
        shutil.move(place / "copy.jsonl", place / "rows.jsonl")
    assert re.search(r"^✓ Load Dataset", stopped.stdout, re.MULTILINE), stopped.stdout
    assert "Filter & Clean failed: " in stopped.stdout


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
    assert re.search(r"log: \S+load-dataset\.log", said)


def test_a_missing_column_names_the_nearest(place, tmp_path):
    said = failing(
        place, tmp_path, "--dataset", "rows.jsonl", "--base-model", "model", more="fields: {output_key: outptu}"
    )
    assert said.startswith("Filter & Clean failed: ")
    assert "'outptu'" in said
    assert "'output'" in said


def test_an_empty_file_says_so(place, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    said = failing(place, tmp_path, "--dataset", tmp_path / "empty.jsonl", "--base-model", "model")
    assert "empty" in said


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
        (["--dataset", "rows.jsonl", "--port", "PORT"], "", "port PORT is taken"),
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


def processes_of(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in part for part in process.info["cmdline"] or []):
            found.append(" ".join(process.info["cmdline"])[:200])
    return found


@pytest.mark.parametrize(
    "how", [signal.SIGINT, *(pytest.param(how, marks=pytest.mark.soak) for how in (signal.SIGTERM, signal.SIGKILL))]
)
def test_a_run_that_is_stopped_in_the_middle_of_training_leaves_nothing_running_and_goes_on_later(place, tmp_path, how):
    workdir = tmp_path / "runs"
    plan = recipe(tmp_path / "my.yaml", more="").read_text().replace("num_epochs: 1", "num_epochs: 400")
    (tmp_path / "my.yaml").write_text(plan + "filter_clean: {pii: 'off'}\n")
    started = subprocess.Popen(
        [COMMAND, "run", "--dataset", "rows.jsonl", "--base-model", "model", "--recipe", tmp_path / "my.yaml", "--workdir", workdir, "--resume"],
        cwd=place, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while (
        not list(workdir.glob("checkpoints/*/checkpoint-*")) and time.monotonic() < deadline and started.poll() is None
    ):
        time.sleep(0.1)
    assert list(workdir.glob("checkpoints/*/checkpoint-*"))
    started.send_signal(how)
    output, _ = started.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while processes_of(workdir) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(workdir) == []
    assert "Traceback" not in output
    if how != signal.SIGKILL:
        assert started.returncode == 130
        assert output.rstrip().endswith("stopped; nothing is left running")
        assert not list(workdir.glob("20*/artifacts/*/finetune-lora/ft_result*"))


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
