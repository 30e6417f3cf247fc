"""The tests see the same machine everywhere: chosen ones pass in the worst surroundings, and nothing of it gets in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import surroundings

TESTS = Path(__file__).parent
DEAD = "http://127.0.0.1:9"
PROXIES = {name: DEAD for scheme in ("http", "https", "all") for name in (f"{scheme}_proxy", f"{scheme}_PROXY".upper())}
HOSTILE = PROXIES | {
    "KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "9", "KUBECONFIG": "/nonexistent/kubeconfig",
    "KF_PIPELINES_ENDPOINT": DEAD, "KF_PIPELINES_SA_TOKEN_PATH": "/nonexistent/token", "KUBEFLOW_SESSION_COOKIE": "c",
    "HF_HOME": "/nonexistent", "HF_TOKEN": "hf_own", "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": DEAD, "TRANSFORMERS_OFFLINE": "1",
    "WANDB_API_KEY": "w", "MLFLOW_TRACKING_URI": DEAD, "JUDGE_API_KEY": "j", "OPENAI_API_KEY": "o",
    "AWS_ACCESS_KEY_ID": "a", "AWS_PROFILE": "absent", "AWS_ENDPOINT_URL": DEAD, "GOOGLE_APPLICATION_CREDENTIALS": "/nonexistent",
    "SSL_CERT_FILE": "/nonexistent", "PIP_INDEX_URL": DEAD, "PYTHONWARNINGS": "error", "WORLD_SIZE": "4", "RANK": "1",
    "LLM_FINETUNE_OWNER_PID": "1", "LLM_FINETUNE_REGISTRY": "registry.example", "_KFP_RUNTIME": "true",
    "HOME": "/nonexistent", "LANG": "tr_TR.UTF-8", "TZ": "Pacific/Kiritimati", "COLUMNS": "20", "TERM": "dumb", "FORCE_COLOR": "1",
    "OMP_NUM_THREADS": "7", "CUDA_VISIBLE_DEVICES": "0", "ONEDNN_MAX_CPU_ISA": "DEFAULT",
}  # fmt: skip
# A cluster and Kubeflow Pipelines, each on a port of this machine; neither needs torch, which is slow to import.
CHOSEN = ["components/run/report/test_report.py", "pipelines/test_submit_network.py"]


def test_only_what_is_named_is_taken_over():
    environment = HOSTILE | {"PATH": "/bin", "PYTEST_XDIST_WORKER": "gw0", "HOME": "/the/sessions"}
    before = surroundings.settle(environment)
    assert environment == surroundings.FIXED | {"PATH": "/bin", "PYTEST_XDIST_WORKER": "gw0", "HOME": "/the/sessions"}
    assert before == HOSTILE | {"PATH": "/bin", "PYTEST_XDIST_WORKER": "gw0", "HOME": "/the/sessions"}


@pytest.mark.parametrize(
    ("marks", "given"),
    [
        ("not demo and not images and not gpu", set()),
        ("demo", {*PROXIES, "SSL_CERT_FILE", "PIP_INDEX_URL"}),
        ("images", {*PROXIES, "SSL_CERT_FILE", "PIP_INDEX_URL"}),
        ("gpu", {"CUDA_VISIBLE_DEVICES"}),
    ],
)
def test_a_mark_gives_back_what_its_tests_take_from_the_machine(marks, given):
    environment = dict(HOSTILE)
    before = surroundings.settle(environment)
    settled = dict(environment)
    surroundings.give_back(environment, before, marks)
    assert {name for name, value in environment.items() if settled.get(name) != value} == given
    assert all(environment[name] == HOSTILE[name] for name in given)


def test_a_gpu_that_nobody_has_chosen_is_seen_by_its_tests():
    environment = {"PATH": "/bin"}
    surroundings.give_back(environment, surroundings.settle(environment), "gpu")
    assert "CUDA_VISIBLE_DEVICES" not in environment


def test_chosen_tests_pass_in_the_worst_surroundings(tmp_path):
    folder = tmp_path / "with a space"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *(str(TESTS / test) for test in CHOSEN)],
        cwd=TESTS.parent, env=HOSTILE | {"PATH": os.environ["PATH"], "TMPDIR": str(folder)}, umask=0o077,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
