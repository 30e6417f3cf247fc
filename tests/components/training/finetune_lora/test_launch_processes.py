"""How a training of several processes ends: a mistake, a defect, SIGTERM, and the death of who started it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.training.finetune_lora import launch

# A process of the training whose work is done by the test: the first one waits for the others for ever.
PROCESS = """
import os, sys, time
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.training.finetune_lora import rank

def work(job, facts):
    open(sys.argv[2] + os.environ["RANK"], "w").write(str(os.getpid()))
    if os.environ["RANK"] == "0" or sys.argv[1] == "wait":
        time.sleep(600)
    raise UserError("lora_r = 0 is too small") if sys.argv[1] == "mistake" else ValueError("a defect of ours")

rank._train = work
rank.main()
"""
CARD = """
import sys
from pathlib import Path
from llm_finetune.components.shared.card import card
from llm_finetune.components.training.finetune_lora.launch import launch
with card():
    launch(2, "process", ["wait", sys.argv[1]], Path(sys.argv[1] + "logs"))
"""


@pytest.fixture
def process(tmp_path, monkeypatch):
    (tmp_path / "process.py").write_text(PROCESS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return f"{tmp_path}/pid-"


def pids(process: str) -> list[int]:
    files = [Path(f"{process}{rank}") for rank in (0, 1)]
    deadline = time.monotonic() + 240
    while not all(file.exists() and file.read_text() for file in files) and time.monotonic() < deadline:
        time.sleep(0.02)
    return [int(file.read_text()) for file in files]


def test_a_mistake_in_one_process_is_told_alone_and_ends_all(process, tmp_path, capfd):
    with pytest.raises(UserError, match=r"^lora_r = 0 is too small$"):
        launch.launch(2, "process", ["mistake", process], tmp_path / "logs")
    assert not any(psutil.pid_exists(pid) for pid in pids(process))
    assert capfd.readouterr().err == ""


def test_a_defect_in_one_process_ends_all_within_a_minute_with_its_traceback(process, tmp_path, capfd):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(launch.ProcessFailed, match=r"process 1 of 2 .*: ValueError: a defect of ours$"):
        launch.launch(2, "process", ["defect", process], tmp_path / "logs")
    assert time.time() - Path(f"{process}1").stat().st_mtime < 60  # since it failed
    assert not any(psutil.pid_exists(pid) for pid in pids(process))
    shown = capfd.readouterr().err
    assert shown.count("Traceback") == 1 and 'process.py", line 10, in work' in shown
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.soak)])
def test_no_process_outlives_the_card(process, tmp_path, number):
    card = subprocess.Popen([sys.executable, "-c", CARD, process], stderr=subprocess.PIPE, text=True)
    ranks = pids(process)
    os.kill(card.pid, number)
    _, told = card.communicate(timeout=120)
    deadline = time.monotonic() + 30
    while any(psutil.pid_exists(pid) for pid in ranks) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(psutil.pid_exists(pid) for pid in ranks)
    if number == signal.SIGTERM:
        assert card.returncode == 143
        assert told == "error: stopped by SIGTERM; no partial output was kept\n"


@pytest.mark.parametrize(("asked", "gpus", "expected"), [(0, 0, 1), (3, 0, 3), (0, 4, 4), (2, 4, 2), (1, 2, 1)])
def test_one_process_per_gpu_unless_asked(monkeypatch, asked, gpus, expected):
    monkeypatch.setattr(launch.torch.cuda, "device_count", lambda: gpus)
    assert launch.resolve_processes(asked) == expected


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(launch.torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="processes = 4, but this machine has 2 GPUs"):
        launch.resolve_processes(4)
