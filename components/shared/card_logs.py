"""What a card's log says to programs: the outcome that the card recorded, and the error that it ended with.

On a cluster, a pod's log holds more than the card's own lines: the launcher of Kubeflow Pipelines, which starts the
card, writes lines in klog's form (`F1127 20:01:02.123456 1 main.go:60] …`), and so does Argo's executor around it.
"""

import contextlib
import json
import re
from typing import Any

OUTCOME = "llm-finetune-outcome: "
KILLED = "killed for memory; give the card's size more (option sizes of llm-finetune compile)"
ERROR, TRACEBACK = "error: ", "Traceback (most recent call last):"
_KLOG = re.compile(r"([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ (\S+):\d+\] ?")
_ARGO = re.compile(r'time="?\d{4}-\d\d-\d\dT\S+ level=|Error: exit status \d+$')
_GO_STACK = re.compile(r"goroutine \d+ .*\[.+\]:")
_CARD_ENDED = re.compile(r"(exit status \d+|signal: [\w ]+)\W*$")  # of the process that the launcher started


def record(by: str, **facts: Any) -> None:
    """Prints what a card has decided or done, as one line of JSON that `recorded` reads.

    The Report card runs as an exit handler, which cannot take other cards' outputs as inputs; it reads their logs.

    Args:
        by: Name of the card's function.
        facts: Plain JSON values by name.
    """
    print(OUTCOME + json.dumps({"by": by} | facts, ensure_ascii=False), flush=True)


def recorded(log: str, by: str) -> dict[str, Any]:
    """Returns what a card recorded last, or an empty mapping.

    Args:
        log: What the card printed.
        by: Name of its function.
    """
    found: dict[str, Any] = {}
    for line in log.splitlines():
        if line.startswith(OUTCOME):
            with contextlib.suppress(ValueError):
                said = json.loads(line.removeprefix(OUTCOME))
                if isinstance(said, dict) and said.get("by") == by:
                    found = said
    return found


def told_error(log: str, runner: str = "launcher") -> str:
    """Returns the error that a card's log ends with, without tracebacks and without the backend's own lines.

    Args:
        log: What the card's container printed.
        runner: Which part of Kubeflow Pipelines ran in it: launcher or driver.

    Returns:
        The launcher's own error, where it failed and not the card; else what follows the card's last `error:`; else
        the exception of its last traceback; else its last line.
    """
    lines, fatal = _parted(log)
    if fatal and not _CARD_ENDED.search(fatal):
        return f"the {runner} of Kubeflow Pipelines says: {fatal}"
    marks = [i for i, line in enumerate(lines) if line.strip().startswith(ERROR)]
    if marks:
        return "\n".join(line.strip() for line in lines[marks[-1] :]).removeprefix(ERROR)
    if "signal: killed" in fatal:
        return KILLED
    return _exception(lines) or (lines[-1].strip() if lines else "it ended without a word (killed? out of memory?)")


def _parted(log: str) -> tuple[list[str], str]:
    """Returns the lines that the card itself printed, and the message that its launcher ended with."""
    lines: list[str] = []
    fatal: list[str] = []
    ending = in_stack = False
    for line in filter(str.strip, log.splitlines()):
        klog = _KLOG.search(line)
        if klog:
            if line[: klog.start()].strip():
                lines.append(line[: klog.start()])  # what the card printed last had no line end
            # PyTorch writes lines of this form too, from Python.
            ending, in_stack = klog[1] == "F" and klog[2].endswith(".go"), False
            fatal = [line[klog.end() :]] if ending else fatal
        elif line.startswith("panic: "):
            ending, in_stack, fatal = True, False, [line]
        elif ending:
            in_stack = in_stack or bool(_GO_STACK.match(line) or _ARGO.match(line))
            fatal += [] if in_stack else [line.strip()]
        elif not _ARGO.match(line):
            lines.append(line)
    return lines, "\n".join(fatal).strip()


def _exception(lines: list[str]) -> str:
    """Returns the exception below the last traceback, all its lines; empty without one."""
    starts = [i for i, line in enumerate(lines) if line.strip() == TRACEBACK]
    if not starts:
        return ""
    below = lines[starts[-1] + 1 :]
    first = next((i for i, line in enumerate(below) if not line.startswith(" ")), len(below))
    return "\n".join(line.strip() for line in below[first:])
