"""The frame of every card: version check, readable errors, provenance metadata."""

import contextlib
import errno
import json
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.metadata import HasMetadata, read_metadata

if TYPE_CHECKING:
    from kfp import dsl

PACKAGE_VERSION = version("llm-finetune")


@contextlib.contextmanager
def card(package_version: str = "") -> Iterator[None]:
    """Runs a card's body and turns expected failures into one readable message.

    A `UserError`, a full disk and an interruption each print a line that starts with `error:` and end the process
    without a traceback. SIGTERM (a deleted pod, a cancelled run) unwinds the stack, so that partial files and child
    processes are cleaned up. Any other exception is a bug in this package and keeps its traceback.

    Args:
        package_version: Version that compiled the pipeline; empty skips the check.

    Raises:
        SystemExit: With code 1 after a `UserError` or a full disk, 130 or 143 after an interruption.
    """
    with _sigterm_unwinds():
        try:
            _check_version(package_version)
            yield
        except UserError as error:
            _fail(str(error), 1)
        except KeyboardInterrupt:
            _fail("interrupted; no partial output was kept", 130)
        except Exception as error:
            if not is_disk_full(error):
                raise
            _fail(f"no space left on the device: {error}. Free disk space, or give the step a larger disk", 1)


def is_disk_full(error: BaseException) -> bool:
    """Returns whether an exception, or one of its causes, means that the disk is full.

    Rust and C++ libraries (safetensors, pyarrow, torch) raise their own types and keep only the message.

    Args:
        error: Any exception.

    Returns:
        True for ENOSPC and EDQUOT, however they are wrapped.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(seen) or "os error 28" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def lineage(
    inputs: Mapping[str, HasMetadata | None] | None = None,
    seed: int | None = None,
    origin: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """Returns the provenance metadata of an output artifact.

    Args:
        inputs: Input artifacts of the card by name; optional inputs that were not given are None.
        seed: Random seed of the card, if it used one.
        origin: Names, revisions and licences of what the card loaded from outside the pipeline.

    Returns:
        `package_version`, `inputs` (content hash by name), `origin` (merged from all inputs and the given one), and
        `seed` if given; `part` if all inputs belong to the same partition of a dataset.
    """
    known = {name: read_metadata(artifact) for name, artifact in (inputs or {}).items() if artifact is not None}
    produced_by: dict[str, Any] = {
        "package_version": PACKAGE_VERSION,
        "inputs": {name: metadata.get("content_hash", "") for name, metadata in known.items()},
        "origin": dict(origin or {}),
    }
    for metadata in known.values():
        produced_by["origin"] |= metadata.get("origin") or {}
    if seed is not None:
        produced_by["seed"] = seed
    parts = {metadata["part"] for metadata in known.values() if "part" in metadata}
    if len(parts) == 1:
        produced_by["part"] = parts.pop()
    return produced_by


def write_metrics(metrics: "dsl.Metrics", values: Mapping[str, float | int | str | bool]) -> None:
    """Logs values to a KFP Metrics artifact and writes its file.

    KFP's local cache never hits when an output has no file, and `log_metric` alone writes none.

    Args:
        metrics: A `dsl.Metrics` artifact.
        values: Metrics by name; numbers must be finite.
    """
    for name, value in values.items():
        metrics.log_metric(name, value)
    Path(metrics.path).parent.mkdir(parents=True, exist_ok=True)
    Path(metrics.path).write_text(json.dumps(dict(values), indent=2, allow_nan=False), encoding="utf-8")


def _check_version(package_version: str) -> None:
    if package_version and package_version != PACKAGE_VERSION:
        raise UserError(
            f"this image contains llm-finetune {PACKAGE_VERSION}, but the pipeline was compiled by version "
            f"{package_version}. Use images whose tag is {package_version}, or compile the pipeline with "
            f"{PACKAGE_VERSION}"
        )


def _fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(code) from None


@contextlib.contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        _fail("stopped by SIGTERM; no partial output was kept", 128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
