"""Access to object stores through fsspec, with readable errors."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from llm_finetune.components.shared.errors import UserError, first_line

PROBE = ".llm-finetune-write-test"
RETRY_PAUSES = (1.0, 5.0)  # seconds before an upload is retried after a connection error


def is_remote(location: str) -> bool:
    """Returns whether a location is a storage URI and not a path."""
    return "://" in location


def open_store(uri: str, setting: str) -> tuple[Any, str]:
    """Opens the object store of a URI.

    Args:
        uri: Such as `s3://bucket/models/address`.
        setting: Name of the setting with the URI, for the error message.

    Returns:
        The fsspec file system and the path in it.

    Raises:
        UserError: If no installed library supports the URI's scheme.
    """
    # gcsfs verifies the checksum of an upload only with this option; the S3 client always does.
    options = {"consistency": "md5"} if uri.startswith(("gs://", "gcs://")) else {}
    try:
        system, root = fsspec.core.url_to_fs(uri, **options)
    except (ValueError, ImportError) as error:
        raise UserError(f"{setting} = {uri!r}: {first_line(error)}") from error
    return system, root.rstrip("/")


def check_writable(system: Any, root: str) -> None:
    """Writes and removes an empty file; raises the errors of the store's library."""
    system.makedirs(root, exist_ok=True)
    system.pipe_file(f"{root}/{PROBE}", b"")
    system.rm_file(f"{root}/{PROBE}")


def upload_file(system: Any, file: Path, target: str) -> None:
    """Uploads a file and retries after connection errors."""
    system.makedirs(target.rpartition("/")[0], exist_ok=True)
    for pause in (*RETRY_PAUSES, None):
        try:
            system.put_file(str(file), target)
            return
        except (ConnectionError, TimeoutError):
            if pause is None:
                raise
            time.sleep(pause)


@contextlib.contextmanager
def explain_store_errors(uri: str, setting: str, again: str) -> Iterator[None]:
    """Turns errors of a store's library into a `UserError`.

    Args:
        uri: Location that is written to.
        setting: Name of the setting with the URI.
        again: What happens on the next run, for the error message.

    Raises:
        UserError: If the block raises any exception.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each storage library raises its own types
        raise UserError(
            f"{setting} = {uri!r} cannot be written: {type(error).__name__}: {first_line(error)}. Check the address "
            f"and the credentials of the step's service account; {again}"
        ) from error
