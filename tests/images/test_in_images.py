"""The images are built for real, and every card of the pipeline runs inside its own (make test-images)."""

import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from engine import ROOT, Engine, missing

from llm_finetune.pipelines.demo.base_model import fetch_base_model
from llm_finetune.pipelines.local.state import RunState, error_of
from llm_finetune.pipelines.recipe import RunPlan, read_recipe

pytestmark = pytest.mark.images

REGISTRY = "localhost/llm-finetune"
MEGABYTES = {"control": 200, "data": 700, "train": 2500}  # the README's table; train with PyTorch's CPU build
DATASET, MODEL = "/mnt/addresses.jsonl", "/mnt/base-model"
STORAGE_URI = "pvc://models/address-parser"


@pytest.fixture(scope="module")
def engine() -> Engine:
    needed = missing()
    if needed:
        pytest.fail(f"these tests need: {needed}", pytrace=False)
    return Engine.prepare(ROOT / "build" / "test-images")


@pytest.fixture(scope="module")
def images(engine: Engine) -> dict[str, str]:
    """Builds all images as a user would, on the stand-in of their base, and returns their names."""
    started = time.monotonic()
    command = [sys.executable, "-m", "images.build", "--builder", "buildah", "--registry", REGISTRY, "--torch", "cpu"]
    command += ["--base", engine.standin(), "--option=--network=host", "--option=--pull-never", "--option=--layers"]
    built = subprocess.run(command, cwd=ROOT, env=engine.environment, stdout=subprocess.PIPE, text=True, check=False)
    assert built.returncode == 0, built.stdout[-3000:]
    names = dict(re.findall(rf"^({REGISTRY}/\w+):(\S+)  ", built.stdout, re.MULTILINE))
    print(f"images built in {time.monotonic() - started:.0f} s")
    return {name.rpartition("/")[2]: f"{name}:{tag}" for name, tag in names.items()}


@pytest.mark.parametrize("family", MEGABYTES)
def test_size(engine: Engine, images: dict[str, str], family: str) -> None:
    size = engine.size(images[family]) / 1e6
    print(f"{family}: {size:.0f} MB uncompressed, {MEGABYTES[family]} MB allowed")
    assert size <= MEGABYTES[family]


INSIDE = """
import importlib.util, json, os, pathlib, shutil, sys, sysconfig
packages = pathlib.Path(sysconfig.get_paths()["purelib"])
sources = [path for path in packages.rglob("*.py")]
cached = lambda path: pathlib.Path(importlib.util.cache_from_source(str(path))).is_file()
def refuses(path):
    try:
        pathlib.Path(path).write_text("x")
    except OSError as error:
        return error.errno
    return 0
pathlib.Path("/tmp/written").write_text("x")
print(json.dumps({
    "uid": os.getuid(),
    "compiled": sum(map(cached, sources)) / len(sources),
    "tools": [name for name in ("pip", "pip3", "gcc", "cc", "g++", "make", "git", "curl") if shutil.which(name)],
    "modules": [name for name in ("pip", "setuptools", "ensurepip", "torch") if importlib.util.find_spec(name)],
    "errno": {path: refuses(path) for path in ("/opt/venv/x", "/etc/x", "/x", "/home/x")},
    "offline": os.environ["HF_HUB_OFFLINE"],
    "home": os.environ["HOME"],
}))
"""


@pytest.mark.parametrize("family", MEGABYTES)
def test_what_is_inside(engine: Engine, images: dict[str, str], family: str) -> None:
    found = json.loads(engine.run(images[family], "python3", "-c", INSIDE))
    assert found["uid"] == 10001
    assert found["compiled"] > 0.99, "a step would compile what it imports, every time it starts"
    assert found["tools"] == []
    assert found["modules"] == (["setuptools", "torch"] if family == "train" else [])  # PyTorch requires setuptools
    left = engine.output(
        "podman", "run", "--rm", "--network", "none", "--user", "0", images[family], "sh", "-c", "ls -A /root"
    )
    assert set(left.split()) <= {".bashrc", ".profile"}, "caches or a shell's history"
    assert set(found["errno"].values()) <= {13, 30}, f"writable: {found['errno']}"
    assert (found["offline"], found["home"]) == ("1", "/tmp")


def test_labels(engine: Engine, images: dict[str, str]) -> None:
    for family, image in images.items():
        labels = json.loads(engine.output("podman", "image", "inspect", "--format", "{{json .Labels}}", image))
        given = {name.rpartition(".")[2]: value for name, value in labels.items()}
        assert given["title"] == f"llm-finetune {family}"
        assert given["version"] == image.rpartition(":")[2]
        assert given["licenses"] == "Apache-2.0"
        assert re.fullmatch(r"[0-9a-f]{40}", given["revision"])


def test_installed_is_what_the_lock_says(engine: Engine, images: dict[str, str]) -> None:
    listing = (
        "import importlib.metadata as m, json; "
        "print(json.dumps({d.name.lower().replace('_', '-').replace('.', '-'): d.version for d in m.distributions()}))"
    )
    sys.path.insert(0, str(ROOT))
    from images import lock

    for family, image in images.items():
        locked = lock.read(Path(f"images/{family}/requirements.txt"))
        if family == "train":
            locked |= lock.read(Path("images/train/torch-cpu.txt"))
        installed = json.loads(engine.run(image, "python3", "-c", listing))
        assert installed.pop("llm-finetune") == image.rpartition(":")[2]
        assert installed == locked


def test_the_base_for_gpus_has_the_compiler_that_triton_asks_for(engine: Engine) -> None:
    tag = f"{REGISTRY}/base-cuda:test"
    arguments = ["--target", "base-cuda", "--build-arg", f"BASE={engine.standin()}", "--build-arg", "TORCH=cuda"]
    engine.output(
        "buildah", "build", "--network=host", "--pull-never", "--layers", *arguments, "--tag", tag,
        "--file", str(ROOT / "images" / "train" / "Containerfile"), str(ROOT),
    )  # fmt: skip
    source = "#include <stdlib.h>\nint twice(int n) { return abs(n) * 2; }\n"
    commands = "cd /tmp && printf '%s' \"$0\" > a.c && gcc a.c -O3 -shared -fPIC -Wno-psabi -o a.so && ls a.so"
    assert engine.run(tag, "sh", "-c", commands, source).strip() == "a.so"


@pytest.fixture(scope="module")
def run(engine: Engine, images: dict[str, str]) -> RunState:
    """Runs the whole pipeline on some rows of the demo and its real base model; a minute or two of real training."""
    folder = ROOT / "build" / "test-images" / time.strftime("run-%H%M%S")
    artifacts = folder / "artifacts"
    artifacts.mkdir(parents=True)
    artifacts.chmod(0o777)  # the cards' user writes here
    model = fetch_base_model(ROOT / "runs" / "base-model" / "smollm2-135m-instruct")
    pipeline, job = folder / "pipeline.yaml", folder / "job.json"
    command = [str(Path(sys.executable).with_name("llm-finetune")), "compile", "--output", str(pipeline)]
    subprocess.run(command, env={**os.environ, "LLM_FINETUNE_REGISTRY": REGISTRY}, check=True)
    mounts = {DATASET: str(ROOT / "pipelines" / "demo" / "addresses.jsonl"), MODEL: str(model.resolve())}
    job.write_text(
        json.dumps(
            {
                "pipeline": str(pipeline),
                "arguments": plan().arguments,
                "pipeline_root": str(artifacts),
                "mounts": mounts,
            }
        )
    )
    state = RunState(pipeline, folder, folder / "cache")
    command = [sys.executable, str(Path(__file__).with_name("card_runner.py")), str(job)]
    with engine.service() as address:
        environment = {**os.environ, "DOCKER_HOST": address, "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as worker:
            assert worker.stdout is not None
            for line in worker.stdout:
                event = state.read(line)
                if event and event.kind in ("succeeded", "failed"):
                    card = state.cards[event.task]
                    print(f"{card.title:20} {card.seconds:6.1f} s  {event.kind}", flush=True)
    begun = [card for card in state.cards.values() if card.state != "waiting"]
    last = state.failed or begun[-1]
    assert worker.returncode == 0 and not state.failed, f"{last.title}: {error_of(last.log)}; logs in {folder}"
    return state


def plan() -> RunPlan:
    """Returns the demo on fewer rows, ending in a manifest: nothing here could serve."""
    demo = read_recipe(Path("demo")).over(read_recipe(Path("local")))
    fewer = RunPlan(
        {
            "jsonl_path": DATASET,
            "model_name": MODEL,
            "max_samples": 32,
            "serve_target": "manifest",
            "gate_rules": "loss_delta < 0",
        },
        {
            "evaluate": {"max_samples": 4, "generate_samples": 2, "max_new_tokens": 8},
            "vllm_serve": {"storage_uri": STORAGE_URI},
        },
    )
    return fewer.over(demo)


def output(run: RunState, task: str, name: str) -> Path:
    """Returns an output of a card; the runner calls a card that vanished a success, so that the output is looked for."""
    path = run.output(task, name)
    assert path is not None, f"{task} left no {name}: {run.cards[task].log.read_text()[-2000:]}"
    return path


def test_every_card_ran_in_its_own_image(run: RunState, images: dict[str, str]) -> None:
    spec = next(yaml.safe_load_all((run.folder / "pipeline.yaml").read_text()))
    asked = {
        label.removeprefix("exec-"): e["container"]["image"] for label, e in spec["deploymentSpec"]["executors"].items()
    }
    assert set(asked) == set(run.cards)
    assert set(asked.values()) == set(images.values())
    for task, card in run.cards.items():
        assert card.state == "done"
        assert f"Found image '{asked[task]}'" in card.log.read_text()
        folder = next((run.folder / "artifacts").glob(f"*/{task}"))
        executed = json.loads((folder / "executor_output.json").read_text())
        assert executed.get("artifacts") or executed.get("parameterValues")
        assert (folder / "executor_output.json").stat().st_uid == 10001


def test_the_run_ends_in_an_adapter_that_has_learned(run: RunState) -> None:
    from safetensors.numpy import load_file

    weights = load_file(output(run, "finetune-lora", "ft_result") / "adapter_model.safetensors")
    learned = {name: abs(values).max() for name, values in weights.items() if "lora_B" in name}
    assert learned and all(value > 0 for value in learned.values())
    report = json.loads(output(run, "evaluate", "eval_report").read_text())["metrics"]
    assert math.isfinite(report["base_loss"]) and report["tuned_loss"] < report["base_loss"]
    page = output(run, "evaluate", "eval_page").read_text()
    assert "<html" in page.lower()


def test_the_run_ends_in_a_model_that_loads(run: RunState) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merged, base = output(run, "merge-export", "merged_model"), output(run, "load-model", "model_config")
    tokenizer = AutoTokenizer.from_pretrained(merged)
    chat = [{"role": "system", "content": "Parse the US address into JSON."}, {"role": "user", "content": "1 Main St"}]
    tokens = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        answers = [
            AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32)(**tokens).logits for f in (merged, base)
        ]
    assert torch.isfinite(answers[0]).all()
    assert not torch.allclose(answers[0], answers[1], atol=1e-3)


def test_the_run_ends_in_a_manifest(run: RunState) -> None:
    info = json.loads(output(run, "vllm-serve", "deployment_info").read_text())
    kinds = {document["kind"]: document for document in yaml.safe_load_all(info["manifests"])}
    assert set(kinds) == {"ServingRuntime", "InferenceService"}
    assert kinds["InferenceService"]["metadata"]["name"] == "address-parser"
    assert kinds["InferenceService"]["spec"]["predictor"]["model"]["storageUri"] == STORAGE_URI
