"""Machine-readable content of a card's log: the outcome that the card recorded, and its last error.

On a cluster, the log of a pod also contains lines of the launcher of Kubeflow Pipelines, in klog format
(`F1127 20:01:02.123456 1 main.go:60] …`), and lines of Argo's executor.
"""

import contextlib
import json
import re
from typing import Any

OUTCOME = "llm-finetune-outcome: "
OUT_OF_MEMORY = "out of memory; raise the memory of the card's size (option `sizes` of llm-finetune compile)"
NO_OUTPUT = "the card produced no output (killed? out of memory?)"
ERROR, TRACEBACK = "error: ", "Traceback (most recent call last):"
_KLOG = re.compile(r"([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ (\S+):\d+\] ?")
_ARGO = re.compile(r'time="?\d{4}-\d\d-\d\dT\S+ level=|Error: exit status \d+$')
_GO_STACK = re.compile(r"goroutine \d+ .*\[.+\]:")
_CARD_EXIT = re.compile(r"(exit status \d+|signal: [\w ]+)\W*$")  # of the process started by the launcher


def record_outcome(by: str, **facts: object) -> None:
    """Prints the outcome of a card as one line of JSON, for `read_outcome`.

    The Report card is an exit handler and cannot have outputs of other cards as inputs, so it reads their logs.

    Args:
        by: Name of the card's function.
        facts: JSON values by name.
    """
    print(OUTCOME + json.dumps({"by": by} | facts, ensure_ascii=False), flush=True)


def read_outcome(log: str, by: str) -> dict[str, Any]:
    """Returns the last outcome that a card recorded, or an empty mapping.

    Args:
        log: Log of the card.
        by: Name of the card's function.
    """
    found: dict[str, Any] = {}
    for line in log.splitlines():
        if line.startswith(OUTCOME):
            with contextlib.suppress(ValueError):
                outcome = json.loads(line.removeprefix(OUTCOME))
                if isinstance(outcome, dict) and outcome.get("by") == by:
                    found = outcome
    return found


def last_error(log: str, runner: str = "launcher") -> str:
    """Returns the last error in a card's log, without traceback and without lines of the backend.

    Args:
        log: Log of the card's container.
        runner: Component of Kubeflow Pipelines in the container: launcher or driver.

    Returns:
        The first of these that the log contains: an error of the launcher itself; the text after the last `error:`;
        the exception of the last traceback; the last line.
    """
    lines, fatal = _split_lines(log)
    if fatal and not _CARD_EXIT.search(fatal):
        return f"the {runner} of Kubeflow Pipelines failed: {fatal}"
    marks = [i for i, line in enumerate(lines) if line.strip().startswith(ERROR)]
    if marks:
        return "\n".join(line.strip() for line in lines[marks[-1] :]).removeprefix(ERROR)
    if "signal: killed" in fatal:
        return OUT_OF_MEMORY
    return _exception(lines) or (lines[-1].strip() if lines else NO_OUTPUT)


def _split_lines(log: str) -> tuple[list[str], str]:
    """Splits a log into the lines of the card and the fatal message of the launcher."""
    lines: list[str] = []
    fatal: list[str] = []
    ending = in_stack = False
    for line in filter(str.strip, log.splitlines()):
        klog = _KLOG.search(line)
        if klog:
            if line[: klog.start()].strip():
                lines.append(line[: klog.start()])  # the last line of the card had no newline
            # PyTorch also writes lines in this format, from Python files.
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
    """Returns all lines of the exception of the last traceback, or an empty string."""
    starts = [i for i, line in enumerate(lines) if line.strip() == TRACEBACK]
    if not starts:
        return ""
    below = lines[starts[-1] + 1 :]
    first = next((i for i, line in enumerate(below) if not line.startswith(" ")), len(below))
    return "\n".join(line.strip() for line in below[first:])
