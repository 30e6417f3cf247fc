"""Object stores behind fsspec: one way to open them, and to explain why one refuses."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from llm_finetune.components.shared.errors import UserError, first_line

PROBE = ".llm-finetune-write-test"
PAUSES = (1.0, 5.0)  # seconds before a file whose connection broke is sent again


def is_remote(place: str) -> bool:
    """Tells a storage URI from a path."""
    return "://" in place


def open_store(uri: str, setting: str) -> tuple[Any, str]:
    """Opens the store of a URI.

    Args:
        uri: Such as `s3://bucket/models/address`.
        setting: Name of the setting that holds it, for the message.

    Returns:
        fsspec's file system and the folder in it.

    Raises:
        UserError: If no library knows such URIs.
    """
    # Google's store compares the sum of what has arrived; those of S3 are compared by its client anyway.
    options = {"consistency": "md5"} if uri.startswith(("gs://", "gcs://")) else {}
    try:
        system, root = fsspec.core.url_to_fs(uri, **options)
    except (ValueError, ImportError) as error:
        raise UserError(f"{setting} = {uri!r}: {first_line(error)}") from error
    return system, root.rstrip("/")


def check_writable(system: Any, root: str) -> None:
    """Writes and removes an empty file; raises what the store's library does."""
    system.makedirs(root, exist_ok=True)
    system.pipe_file(f"{root}/{PROBE}", b"")
    system.rm_file(f"{root}/{PROBE}")


def send(system: Any, file: Path, target: str) -> None:
    """Sends a file, again where the connection breaks."""
    system.makedirs(target.rpartition("/")[0], exist_ok=True)
    for pause in (*PAUSES, None):
        try:
            system.put_file(str(file), target)
            return
        except (ConnectionError, TimeoutError):
            if pause is None:
                raise
            time.sleep(pause)


@contextlib.contextmanager
def refusals(uri: str, setting: str, again: str) -> Iterator[None]:
    """Turns what a store's library raises into one message.

    Args:
        uri: The place.
        setting: Name of the setting that holds it.
        again: What running again does, for the message.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # every storage library raises types of its own
        raise UserError(
            f"{setting} = {uri!r} can't be written: {type(error).__name__}: {first_line(error)}. Check the address "
            f"and the credentials of the step's service account; {again}"
        ) from error
