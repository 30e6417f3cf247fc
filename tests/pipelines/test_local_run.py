"""The command as a new user runs it: the whole pipeline on a tiny model, and the mistakes that people make."""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import psutil
import pytest
from browser import needs_chromium, opened
from local_user import COMMAND, RUN, recipe, rows, run, user_folder
from rich.console import Console

from llm_finetune.components.shared import tables
from llm_finetune.pipelines.local import start
from llm_finetune.pipelines.local.plan import make_plan
from llm_finetune.pipelines.local.runner import LocalRun
from llm_finetune.pipelines.local.state import RunState


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return user_folder(tmp_path_factory.mktemp("user"))


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
        env={**os.environ, "COLUMNS": "60", "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"},
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
    assert re.search(r"^merged weights: dtype (bfloat16|float16|float32)$", whole.stdout, re.MULTILINE)
    logs = sorted(path.name for path in next((place / "runs").glob("20*")).glob("logs/*.log"))
    assert sum("finetune-lora" in name for name in logs) == 1
    assert re.search(r"^answer: .+", whole.stdout, re.MULTILINE)
    assert "Test prompts: validation rows" in whole.stdout
    asked = re.findall(r"^prompt: system: Repeat the number\n\nuser: number (\d+)$", whole.stdout, re.MULTILINE)
    folder = next((place / "runs").glob("20*"))
    (val,) = {path.name: path for path in folder.glob("artifacts/**/val_sft")}.values()
    prompts = [row["prompt"] for row in tables.head(val, 2).to_pylist()]
    assert [f'Do "Repeat the number":\nnumber {number}\n\n' for number in asked] == prompts
    assert f'"content": "number {asked[0]}"' in whole.stdout
    (exported,) = {path.name: path for path in folder.glob("artifacts/**/merged_model")}.values()
    assert not any(
        b"number " + number.encode() in path.read_bytes() for number in asked for path in exported.glob("*.json")
    )
    assert whole.answer["choices"][0]["message"]["role"] == "assistant"
    _, stopping, rest = whole.stdout.partition("stopping the server\n")
    assert stopping and f"\n{next((place / 'runs').glob('20*/artifacts/*/merge-export/merged_model'))}\n" in rest
    assert processes_of(place / "runs") == []


def links(output: str) -> list[str]:
    """Returns the links to files that were printed, each of which has its line for itself."""
    found = re.findall(r"^file://.+$", output, re.MULTILINE)
    assert output.count("file://") == len(found) and found[-1].endswith("/index.html"), output
    return found


def index_of(output: str) -> Path:
    return Path(url2pathname(urlsplit(links(output)[-1]).path))


def test_printed_links_are_pages_and_the_index_links_them_all(whole):
    printed = links(whole.stdout)
    assert len(printed) == 5 and all(link.endswith(".html") for link in printed)
    index = index_of(whole.stdout)
    linked = [index.parent / link for link in re.findall(r'href="(.*?)"', index.read_text())]
    assert len(linked) == 17
    assert {index.parent / "pages" / Path(link).name for link in printed[:-1]} < set(linked)
    for page in linked:
        text = page.read_text()
        assert page.suffix == ".html" and text.startswith("<!doctype html>") and "<h1>" in text
        assert re.search(r"<title>\s*\S.*</title>", text), page
    assert ">Succeeded</p>" in index.read_text()


@needs_chromium
def test_printed_links_open_as_pages_in_a_browser(whole, tmp_path):
    for link in links(whole.stdout):
        shown = opened(link, tmp_path)
        assert re.search(r"<title>\s*\S.*</title>", shown) and "<h1>" in shown, link
        assert "&lt;!doctype" not in shown.lower(), link


def test_no_request_to_a_server_that_is_gone_is_printed(whole, place):
    folder = index_of(whole.stdout).parent
    state = RunState(folder / "pipeline.yaml", folder, place / "runs" / "cache")
    for task in state.cards:
        state.read(f"INFO - Executing task '{task}'\n")
        state.read(f"Task '{task}' finished with status SUCCESS\n")
    console = Console(file=io.StringIO(), width=60, highlight=False)
    assert start._finish(console, LocalRun(state, 1.0, 1.0, True), keep=False) == 0
    shown = console.file.getvalue()
    assert "curl" not in shown and "http://" not in shown
    model = state.output("merge-export", "merged_model")
    *_, title, command = shown.splitlines()
    assert title == "To serve it again:"
    assert shlex.split(command) == [COMMAND, "serve", str(model), "--name", "llm-finetune-v1", "--keep"]
    assert f"\n{model}\n" in shown


def test_a_second_run_takes_from_the_cache_what_has_not_changed(whole, place):
    plan = recipe(place / "manifest.yaml").read_text().replace("serve_target: local", "serve_target: manifest")
    (place / "manifest.yaml").write_text(plan.replace("port: 0", "storage_uri: pvc://models/tiny"))
    again = run(*RUN, place / "manifest.yaml", cwd=place)
    assert again.returncode == 0, again.stdout
    assert len(re.findall(r"^= .+cached$", again.stdout, re.MULTILINE)) == 11, again.stdout
    assert re.findall(r"^✓ (.+?)\s+\d+:\d\d$", again.stdout, re.MULTILINE) == [
        "Check Recipe", "Pin Sources", "Quality Gate", "vLLM Serve", "Report"
    ]  # fmt: skip
    index = index_of(again.stdout)
    assert index != index_of(whole.stdout)
    assert index.read_text().count(">cached</td>") == 11
    assert (
        len(re.findall(r'href="pages/', index.read_text())) == len(list((index.parent / "pages").glob("*.html"))) == 17
    )
    assert "Nothing is deployed; the page of vLLM Serve contains the manifests" in again.stdout
    assert "curl" not in again.stdout


@pytest.mark.soak
def test_a_merged_model_is_served_again_and_stopped_by_hand(whole, place):
    merged = next((place / "runs").glob("20*/artifacts/*/merge-export/merged_model"))
    served = subprocess.run([COMMAND, "serve", merged, "--name", "again", "--port", "0", "--no-keep", "--workdir", "by-hand"],
                            cwd=place, capture_output=True, text=True, timeout=200)  # fmt: skip
    assert served.returncode == 0, served.stderr
    port = re.search(r"^http://127\.0\.0\.1:(\d+)/v1$", served.stdout, re.MULTILINE)[1]
    listed = subprocess.run(
        ["curl", "-s", f"http://127.0.0.1:{port}/v1/models"], capture_output=True, text=True, check=True
    )
    assert '"again"' in listed.stdout
    command = served.stdout.splitlines()[-1]
    assert shlex.split(command) == [COMMAND, "stop", "--workdir", str(place / "by-hand")]
    stopped = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
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
    assert "The gate stayed closed: not deployed, because tuned_loss < 0 does not hold: tuned_loss = " in closed.stdout
    assert "Merge & Export" not in re.findall(r"^[✓=] (.+?)\s+", closed.stdout, re.MULTILINE)
    index = index_of(closed.stdout).read_text()
    assert ">Gate closed</p>" in index and "not deployed, because tuned_loss &lt; 0 does not hold" in index


def model_card(place: Path) -> Path:
    return next((place / "runs").glob("20*/artifacts/**/merged_model/README.md"))


@contextlib.contextmanager
def other_rows(place: Path) -> Iterator[None]:
    shutil.copy(place / "rows.jsonl", place / "copy.jsonl")
    rows(place / "rows.jsonl", 41)
    try:
        yield
    finally:
        shutil.move(place / "copy.jsonl", place / "rows.jsonl")


def test_a_model_card_holds_the_recipe_and_the_sources_of_the_run(whole, place):
    arguments = json.loads((index_of(whole.stdout).parent / "job.json").read_text())["arguments"]
    recipe = arguments.pop("recipe")
    plan = make_plan("", "", None, [], -1, model_card(place))
    assert plan.parameters.items() >= arguments.items()
    assert plan.recipe.pop("load_dataset") == {"sha256": sha256((place / "rows.jsonl").read_bytes()).hexdigest()}
    assert plan.recipe.pop("load_model")["revision"].startswith("sha256:")
    for settings in (plan.recipe, recipe):
        del settings["vllm_serve"]  # where it is served is not of the model
    del recipe["finetune_lora"]["checkpoint_root"]
    assert plan.recipe == recipe


def test_a_run_is_not_repeated_on_other_rows(whole, place):
    with other_rows(place):
        repeated = run("--from-card", model_card(place), "--port", "0", "--no-keep", "--workdir", "other", cwd=place)
    assert repeated.returncode == 1
    assert "Load Dataset failed: " in repeated.stdout and "sha256" in repeated.stdout, repeated.stdout


@pytest.mark.soak
def test_a_model_card_repeats_the_run(whole, place):
    (adapter,) = {path.name: path for path in (place / "runs").glob("20*/artifacts/**/ft_result")}.values()
    never = ["--set", "gate_rules=samples_used < 0", "--workdir", "again"]
    again = run("--from-card", model_card(place), *never, "--port", "0", "--no-keep", cwd=place)
    assert again.returncode == 3, again.stdout
    (repeated,) = (place / "again").glob("20*/artifacts/**/ft_result")
    for name in ("adapter_model.safetensors", "tokenizer.json"):
        assert (repeated / name).read_bytes() == (adapter / name).read_bytes()


def test_changed_rows_are_read_anew_and_the_model_is_not(whole, place):
    with other_rows(place):
        stopped = run("--dataset", "rows.jsonl", "--base-model", "model", "--recipe", recipe(place / "bad.yaml", more="filter_clean: {min_chars: 4000}"),
                      "--resume", cwd=place)  # fmt: skip
    assert re.search(r"^✓ Load Dataset", stopped.stdout, re.MULTILINE), stopped.stdout
    assert "Filter & Clean failed: " in stopped.stdout
    index = index_of(stopped.stdout).read_text()
    assert (
        ">Failed</p>" in index
        and "Filter &amp; Clean failed: " in index
        and 'href="pages/load-dataset-preview.html"' in index
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
def test_a_run_that_is_stopped_in_the_middle_of_training_leaves_nothing_running_and_goes_on_later(
    whole, place, tmp_path, how
):
    workdir = tmp_path / "runs"
    shutil.copytree(place / "runs" / "cache", workdir / "cache")  # up to the training nothing is run again
    plan = recipe(tmp_path / "my.yaml").read_text().replace("num_epochs: 1", "num_epochs: 400")
    (tmp_path / "my.yaml").write_text(plan)
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
        assert output.rstrip().endswith("stopped; all processes have ended")
        assert ">Stopped</p>" in index_of(output).read_text()
        assert not list(workdir.glob("20*/artifacts/*/finetune-lora/ft_result*"))
