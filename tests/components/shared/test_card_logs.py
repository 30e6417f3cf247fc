"""What is read from a card's log: its error, without the lines of the launcher around it, and what it recorded."""

import pytest

from llm_finetune.components.shared.card_logs import OUT_OF_MEMORY, last_error, read_outcome, record_outcome

BEFORE = """\
I1127 20:01:01.000000      12 main.go:79] Setting log level to: '1'
W1127 20:01:01.000001      12 config.go:71] no kfp-launcher
time="2026-11-27T20:01:00.000Z" level=info msg="capturing logs" argo=true
[KFP Executor 2026-11-27 20:01:01,500 INFO]: --component_module_path
"""
AFTER = """\
E1127 20:01:02.123456      12 launcher_v2.go:461] Component failed to execute successfully: exit status 1
I1127 20:01:03.000000      12 launcher_v2.go:205] publish success.
F1127 20:01:03.500000      12 main.go:60] failed to execute component: exit status 1
time="2026-11-27T20:01:04.000Z" level=info msg="sub-process exited" argo=true error="<nil>"
Error: exit status 1
"""
LAUNCHER = "the launcher of Kubeflow Pipelines failed: "
UPLOAD = 'failed to execute component: failed to upload output artifact "x": AccessDenied\nstatus 403'


def klog(message, severity="F"):
    return f"{severity}1127 20:01:03.500000      12 main.go:60] {message}\n"


@pytest.mark.parametrize(
    ("log", "error"),
    [
        (f"{BEFORE}step 1\nerror: the loss is not finite\n\n  lower it\n{AFTER}", "the loss is not finite\nlower it"),
        (f"{BEFORE}error: first\nstep 2\nerror: last\n{AFTER}", "last"),
        (f"{BEFORE}error: of the card\n" + AFTER.replace("F1127", "E1127"), "of the card"),
        (f"{BEFORE}  5/5 [00:01]{AFTER}", "5/5 [00:01]"),
        (f'{BEFORE}Traceback (most recent call last):\n  File "/tmp/executor_main.py", line 1\n    run()\n'
         f"RuntimeError: CUDA error: out\nCompile with TORCH_USE_CUDA_DSA\n{AFTER}",
         "RuntimeError: CUDA error: out\nCompile with TORCH_USE_CUDA_DSA"),
        ("Traceback (most recent call last):\n  a\nKeyError: 1\n\nDuring handling:\n\n"
         "Traceback (most recent call last):\n  b\nValueError: 2\n", "ValueError: 2"),
        (BEFORE + "rows\n" + klog(UPLOAD) + "goroutine 1 [running]:\nmain.main()\n\t/go/main.go:1 +0x1\n",
         LAUNCHER + UPLOAD),
        (BEFORE + "error: told and passed\n" + klog(UPLOAD) + "Error: exit status 1\n", LAUNCHER + UPLOAD),
        (BEFORE + klog("no log level", "E") + "panic: runtime error: nil\n\ngoroutine 1 [running]:\nmain.main()\n",
         LAUNCHER + "panic: runtime error: nil"),
        (BEFORE + "step 3\n" + klog("failed to execute component: signal: killed"), OUT_OF_MEMORY),
        (BEFORE + "error: stopped by SIGTERM\n" + klog("failed to execute component: signal: killed"),
         "stopped by SIGTERM"),
        ("E1127 20:01:02.123000 12 torch/distributed/elastic/multiprocessing/api.py:882] failed (exitcode: 1)\n"
         "error: rank 0 ended\n" + AFTER, "rank 0 ended"),
        ("step 1\nstep 2\n", "step 2"),
        (BEFORE.splitlines()[0], "the card produced no output (killed? out of memory?)"),
        ("", "the card produced no output (killed? out of memory?)"),
    ],
)  # fmt: skip
def test_the_error_is_the_cards_own_or_said_to_be_the_launchers(log, error):
    assert last_error(log) == error


def test_what_a_card_recorded_last_is_read_whatever_stands_around_it(capsys):
    print('llm-finetune-outcome: {"by": "quality_gate", "open": true}')
    record_outcome("quality_gate", open=False, reason='zwei\nZeilen "é"')
    record_outcome("vllm_serve", base_url="http://x")
    print("llm-finetune-outcome: {not JSON\nllm-finetune-outcome: [1]\n    llm-finetune-outcome: {}\n" + AFTER)
    log = capsys.readouterr().out
    assert read_outcome(log, "quality_gate") == {"by": "quality_gate", "open": False, "reason": 'zwei\nZeilen "é"'}
    assert read_outcome(log, "vllm_serve")["base_url"] == "http://x"
    assert read_outcome(log, "report") == {}
